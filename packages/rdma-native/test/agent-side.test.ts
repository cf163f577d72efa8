import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type DescriptorEvent,
  type DescriptorServerHandle,
  native,
  type StoreViewHandle,
} from "@weightline/rdma-native";
import t from "tap";
import { newId } from "./native-helpers.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-agent-`);
const store = mkdtempSync("/dev/shm/weightline-agent-");
t.teardown(() => {
  rmSync(folder, { recursive: true });
  rmSync(store, { recursive: true });
});

/** Runs Python that speaks to a socket; gives its output. Asynchronous: the server's events need this thread. */
function python(code: string, parameters: readonly string[] = []): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve) => {
    const child = spawn("python3", ["-c", code, ...parameters], { stdio: ["ignore", "pipe", "inherit"] });
    let output = "";
    child.stdout.on("data", (data: Buffer) => {
      output += data.toString();
    });
    child.on("close", (exit) => resolve({ code: exit, output: output.trim() }));
  });
}

t.test("the store's lock: one holder, named by process id; a child that inherited it keeps it", async (t) => {
  const path = `${store}/lock`;
  const lock = await native.lockStore(path, 0);
  const child = spawn("sleep", ["60"], { stdio: ["ignore", "ignore", "ignore", native.storeLockDescriptor(lock)] });
  t.teardown(() => child.kill("SIGKILL"));
  await new Promise((resolve) => child.once("spawn", resolve));
  native.unlockStore(lock);
  native.unlockStore(lock);
  t.throws(() => native.storeLockDescriptor(lock), { code: "Closed" });
  const started = performance.now();
  await t.rejects(native.lockStore(path, 200), {
    code: "InUse",
    field: "--store",
    message: new RegExp(`process ${child.pid}\\b`),
  });
  t.ok(performance.now() - started >= 190, "it waited for the holder's end");
  const waiting = native.lockStore(path, 5000);
  child.kill("SIGKILL");
  native.unlockStore(await waiting);
});

t.test("who is at a socket: pid, uid, and the end of the process", async (t) => {
  const path = `${folder}/peer.sock`;
  const server = createServer();
  t.teardown(() => server.close());
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const child = spawn("python3", [
    "-c",
    "import socket,sys,time\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);time.sleep(60)",
    path,
  ]);
  t.teardown(() => child.kill("SIGKILL"));
  const socket = await connected;
  const descriptor = (socket as unknown as { _handle: { fd: number } })._handle.fd;
  const peer = native.peerProcess(descriptor);
  t.equal(peer.pid, child.pid);
  t.equal(peer.uid, process.getuid?.());
  t.match(peer.source, /SO_PEERPIDFD|pidfd_open/);
  t.equal(peer.cgroup, native.openProcess(process.pid).cgroup, "the same cgroup as this process");
  t.ok(native.processAlive(peer.process));
  let ends = 0;
  native.watchProcess(peer.process, () => {
    ends += 1;
  });
  child.kill("SIGKILL");
  await new Promise((resolve) => child.once("exit", resolve));
  for (let i = 0; i < 50 && ends === 0; i++) {
    await sleep(20);
  }
  t.equal(ends, 1, "told once");
  t.notOk(native.processAlive(peer.process));
  native.watchProcess(peer.process, () => {
    ends += 1;
  });
  for (let i = 0; i < 50 && ends === 1; i++) {
    await sleep(20);
  }
  t.equal(ends, 2, "a process that has ended already is told at once");
  native.closeProcess(peer.process);
  native.closeProcess(peer.process);
  t.throws(() => native.processAlive(peer.process), { code: "Closed" });
  t.throws(() => native.openProcess(2 ** 22 + 1), "no such process");
});

function makeHolding(files: Record<string, Buffer>): string {
  const id = newId();
  const path = `${store}/holdings/${id}/files`;
  mkdirSync(path, { recursive: true });
  for (const [name, data] of Object.entries(files)) {
    writeFileSync(`${path}/${name}`, data);
  }
  return id;
}

const CLIENT = `
import array, os, socket, struct, sys
def ask(path, message, fds=()):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5); s.connect(path)
    if fds: socket.send_fds(s, [message], fds)
    else: s.send(message)
    got, total = [], None
    while total is None or len(got) < total:
        data, anc, flags, _ = s.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
        a = array.array("i")
        for l, k, c in anc: a.frombytes(c[:len(c) - len(c) % 4])
        if not a:
            return None, data.decode()
        total, first = struct.unpack("<II", data)
        assert first == len(got) and not flags & socket.MSG_CTRUNC
        got += list(a)
    return got, total
`;

interface Server {
  handle: DescriptorServerHandle;
  view: StoreViewHandle;
  path: string;
  events: DescriptorEvent[];
}

async function serve(): Promise<Server> {
  const view = await native.openStoreView(store, "");
  const path = `${folder}/${newId()}.fd`;
  const events: DescriptorEvent[] = [];
  return { handle: native.createDescriptorServer(path, view, (event) => events.push(event)), view, path, events };
}

/** A Python client that waits for its ticket on the command line, so that its pid can be granted. */
async function withTicket(
  server: Server,
  grant: { holdingId: string; paths: string[]; ttlMs?: number; pid?: number },
  body: string,
): Promise<string> {
  const ticketId = randomBytes(16);
  const secret = randomBytes(32);
  const child = spawn(
    "python3",
    [
      "-c",
      `${CLIENT}\nsys.stdin.readline()\npath, ticket = sys.argv[1], b"WLFD" + struct.pack("<I", 1) + bytes.fromhex(sys.argv[2])\n${body}`,
      server.path,
      Buffer.concat([ticketId, secret]).toString("hex"),
    ],
    {
      stdio: ["pipe", "pipe", "inherit"],
    },
  );
  native.grantDescriptors(server.handle, {
    ticketId,
    secret,
    ttlMs: grant.ttlMs ?? 10_000,
    holdingId: grant.holdingId,
    paths: grant.paths,
    pid: grant.pid ?? child.pid ?? 0,
  });
  if (grant.ttlMs !== undefined) {
    await sleep(grant.ttlMs + 50);
  }
  child.stdin.end("go\n");
  let output = "";
  child.stdout.on("data", (data: Buffer) => {
    output += data.toString();
  });
  await new Promise((resolve) => child.once("close", resolve));
  return output.trim();
}

const openDescriptors = () => readdirSync("/proc/self/fd").length;

t.test(
  "descriptors: 1, 253, 254 and 1,000 of them, the right files in the right order, none left behind",
  async (t) => {
    const server = await serve();
    t.teardown(() => native.closeDescriptorServer(server.handle));
    const files = Object.fromEntries(
      Array.from({ length: 1000 }, (_, i) => [String(i).padStart(4, "0"), Buffer.from(`file ${i}`)]),
    );
    const id = makeHolding(files);
    const before = openDescriptors();
    for (const count of [1, 253, 254, 1000]) {
      const paths = Object.keys(files)
        .slice(0, count)
        .map((name) => `files/${name}`);
      const output = await withTicket(
        server,
        { holdingId: id, paths },
        `fds, total = ask(path, ticket)\nprint(total, all(os.pread(fd, 99, 0) == b"file %d" % i for i, fd in enumerate(fds)))`,
      );
      t.equal(output, `${count} True`);
    }
    await sleep(50);
    t.ok(openDescriptors() <= before, "none is left open here");
    t.equal(server.events.filter(({ kind }) => kind === "sent").length, 4);
  },
);

t.test("what a pod can do with a descriptor: read", async (t) => {
  const server = await serve();
  t.teardown(() => native.closeDescriptorServer(server.handle));
  const level = native.storeViewLevel(server.view);
  const id = makeHolding({ "0000": Buffer.alloc(4096, 1) });
  const output = await withTicket(
    server,
    { holdingId: id, paths: ["files/0000"] },
    `
import mmap
fds, _ = ask(path, ticket)
fd = fds[0]
def attempt(what, call):
    try: call(); print(what, "done")
    except (OSError, ValueError) as e: print(what, "refused")
attempt("read", lambda: os.pread(fd, 1, 0))
attempt("write", lambda: os.pwrite(fd, b"x", 0))
attempt("truncate", lambda: os.ftruncate(fd, 0))
attempt("map", lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ))
attempt("map writable", lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE))
attempt("reopen", lambda: os.open("/proc/self/fd/%d" % fd, os.O_RDWR))
attempt("chmod", lambda: os.fchmod(fd, 0o777))
`,
  );
  const done = output
    .split("\n")
    .filter((line) => line.endsWith("done"))
    .map((line) => line.replace(" done", ""));
  // Without a read-only mount root may still reopen and chmod.
  t.same(done, level === "plain" ? ["read", "map", "reopen", "chmod"] : ["read", "map"], level);
});

t.test("tickets: used, expired, another process's, wrong, of another version, with descriptors, cut off", async (t) => {
  const server = await serve();
  t.teardown(() => native.closeDescriptorServer(server.handle));
  const id = makeHolding({ "0000": Buffer.from("x") });
  const paths = ["files/0000"];
  const refused = async (name: string, code: string, body: string, grant: { ttlMs?: number; pid?: number } = {}) => {
    const output = await withTicket(server, { holdingId: id, paths, ...grant }, body);
    t.match(output, `"code":"${code}"`, name);
  };
  const print = "print(ask(path, ticket)[1])";
  await refused("used", "PermissionDenied", `ask(path, ticket)\n${print}`);
  await refused("expired", "PermissionDenied", print, { ttlMs: 30 });
  await refused("another process's", "PermissionDenied", print, { pid: process.pid });
  await refused("wrong secret", "PermissionDenied", "print(ask(path, ticket[:-1] + bytes([ticket[-1] ^ 1]))[1])");
  await refused("unknown", "PermissionDenied", "print(ask(path, ticket[:8] + bytes(48))[1])");
  await refused("version 2", "Refused", 'print(ask(path, b"WLFD" + struct.pack("<I", 2) + ticket[8:])[1])');
  await refused("short", "InvalidArgument", "print(ask(path, ticket[:40])[1])");
  await refused("long", "InvalidArgument", 'print(ask(path, ticket + b"x")[1])');
  await refused("no magic", "InvalidArgument", 'print(ask(path, b"XXXX" + ticket[4:])[1])');
  const before = openDescriptors();
  await refused("with descriptors", "InvalidArgument", "print(ask(path, ticket, [0] * 200)[1])");
  t.ok(openDescriptors() <= before + 5, "a stranger's 200 descriptors are closed");
  t.ok(server.events.every(({ kind, reason }) => kind === "sent" || reason !== ""));
});

t.test("a revoked holding, a link and a path outside are not handed out", async (t) => {
  const server = await serve();
  t.teardown(() => native.closeDescriptorServer(server.handle));
  const id = makeHolding({ "0000": Buffer.from("x") });
  symlinkSync("/etc/passwd", `${store}/holdings/${id}/files/link`);
  for (const path of ["files/link", "../../lock", "files/none", "/etc/passwd", "files"]) {
    t.match(
      await withTicket(server, { holdingId: id, paths: [path] }, "print(ask(path, ticket)[1])"),
      '"code":"',
      path,
    );
  }
  const ticketId = randomBytes(16);
  native.grantDescriptors(server.handle, {
    ticketId,
    secret: randomBytes(32),
    pid: process.pid,
    ttlMs: 1000,
    holdingId: id,
    paths: ["files/0000"],
  });
  native.revokeDescriptors(server.handle, id);
  t.throws(
    () =>
      native.grantDescriptors(server.handle, {
        ticketId,
        secret: Buffer.alloc(3),
        pid: 1,
        ttlMs: 1,
        holdingId: id,
        paths: ["x"],
      }),
    { code: "InvalidArgument", field: "secret" },
  );
  t.throws(
    () =>
      native.grantDescriptors(server.handle, {
        ticketId,
        secret: randomBytes(32),
        pid: 1,
        ttlMs: 1,
        holdingId: id,
        paths: [],
      }),
    { code: "InvalidArgument", field: "paths" },
  );
});

t.test("512 silent connections do not keep a client from its descriptors", async (t) => {
  const server = await serve();
  t.teardown(() => native.closeDescriptorServer(server.handle));
  const id = makeHolding({ "0000": Buffer.from("x") });
  const crowd = spawn(
    "python3",
    [
      "-c",
      `import socket,sys,time\nall=[]\nfor i in range(512):\n s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); all.append(s)\nprint("there", flush=True)\ntime.sleep(60)`,
      server.path,
    ],
    {
      stdio: ["ignore", "pipe", "inherit"],
    },
  );
  t.teardown(() => crowd.kill("SIGKILL"));
  await new Promise((resolve) => crowd.stdout.once("data", resolve));
  t.equal(await withTicket(server, { holdingId: id, paths: ["files/0000"] }, "print(ask(path, ticket)[1])"), "1");
});

t.test("after close every use is refused, and an old socket file is replaced", async (t) => {
  const server = await serve();
  native.closeDescriptorServer(server.handle);
  native.closeDescriptorServer(server.handle);
  t.throws(() => native.revokeDescriptors(server.handle, newId()), { code: "Closed" });
  writeFileSync(server.path, "an old file");
  const again = native.createDescriptorServer(server.path, server.view, () => undefined);
  native.closeDescriptorServer(again);
  native.closeStoreView(server.view);
  native.closeStoreView(server.view);
  t.throws(() => native.storeViewLevel(server.view), { code: "Closed" });
  const deaf = await python(
    `import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\ntry: s.connect(sys.argv[1]); print("connected")\nexcept OSError as e: print("refused")`,
    [server.path],
  );
  t.equal(deaf.output, "refused");
  t.throws(() => native.createDescriptorServer(`${folder}/${"x".repeat(120)}`, server.view, () => undefined), {
    code: "Closed",
  });
  await t.rejects(native.openStoreView(store, folder), { code: "Refused", field: "--store-ro" });
});

t.test("a process that ends with everything open neither hangs nor crashes", async (t) => {
  const program = `
import { native } from "${new URL("../src/index.ts", import.meta.url).pathname}";
import { mkdtempSync, mkdirSync } from "node:fs";
const store = mkdtempSync("/dev/shm/weightline-exit-"); mkdirSync(store + "/holdings");
const view = await native.openStoreView(store, "");
native.createDescriptorServer(store + "/s.fd", view, () => {});
native.createMover({ store, bind: ["127.0.0.1"], port: 0 }, () => {});
native.watchProcess(native.openProcess(process.ppid).process, () => {});
await native.lockStore(store + "/lock", 0);
console.log(store);
`;
  for (const end of [
    "",
    "process.exit(0);",
    "await import('node:worker_threads').then(({Worker}) => new Promise((r) => { const w = new Worker('setInterval(()=>{},100)', { eval: true }); w.once('online', () => w.terminate().then(r)); })); process.exit(0);",
  ]) {
    const done = spawnSync(process.execPath, ["--input-type=module-typescript", "-e", program + end], {
      timeout: 20_000,
      encoding: "utf8",
    });
    t.equal(done.status, 0, `${end.slice(0, 20) || "by itself"}: ${done.stderr}`);
    rmSync(done.stdout.trim(), { recursive: true, force: true });
  }
});
