// The local API's socket: fair to all who connect, whatever one of them does.
import { spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { connect, Socket } from "node:net";
import { tmpdir } from "node:os";
import { type LocalListenerHandle, native } from "@weightline/rdma-native";
import t, { type Test } from "tap";
import { ended, eventually, firstLine, nodeProgram, runProgram } from "./agent-helpers.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-listener-`);
t.teardown(() => rmSync(folder, { recursive: true }));
let count = 0;
const newPath = () => `${folder}/${count++}.sock`;
const descriptors = () => readdirSync("/proc/self/fd").length;

interface Listening {
  handle: LocalListenerHandle;
  path: string;
  pids: number[];
}

/** Answers each connection with a line. */
function listen(t: Test, answer = true): Listening {
  const path = newPath();
  const pids: number[] = [];
  const handle = native.createLocalListener(path, (descriptor) => {
    try {
      const peer = native.peerProcess(descriptor);
      pids.push(peer.pid);
      native.closeProcess(peer.process);
    } catch {
      pids.push(-1);
    }
    const socket = new Socket({ fd: descriptor, readable: true, writable: true });
    socket.on("error", () => undefined);
    if (answer) {
      socket.end("hello");
    } else {
      t.teardown(() => socket.destroy());
    }
  });
  t.teardown(() => native.closeLocalListener(handle));
  return { handle, path, pids };
}

const CLIENT = `import socket,sys
path = sys.argv[1]
def hello():
    s = socket.socket(socket.AF_UNIX); s.settimeout(None); s.connect(path)
    got = b""
    while True:
        data = s.recv(10)
        if not data: return got
        got += data
`;
const python = (path: string, body: string) => ["python3", "-u", "-c", `${CLIENT}${body}`, path];

t.test("connections come with their makers, one after another; the file has mode 0666 and goes", async (t) => {
  const { handle, path, pids } = listen(t);
  t.equal((await runProgram(["stat", "-c", "%a %F", path])).output, "666 socket");
  const before = descriptors();
  const done = await runProgram(python(path, "print(all(hello() == b'hello' for i in range(300)))"));
  t.equal(done.output, "True");
  t.equal(pids.length, 300);
  t.equal(new Set(pids).size, 1);
  t.ok(await eventually(() => descriptors() <= before), "none stays open");
  native.closeLocalListener(handle);
  native.closeLocalListener(handle);
  t.notOk(existsSync(path));
});

t.test("what is wrong with a path; an old socket is replaced, a successor's stays", async (t) => {
  const file = newPath();
  writeFileSync(file, "");
  const create = (path: string) => native.createLocalListener(path, () => undefined);
  t.throws(() => create(file), { code: "AlreadyExists", field: "--socket" });
  t.throws(() => create(`${folder}/${"x".repeat(120)}`), { code: "InvalidArgument", field: "--socket", limit: "107" });
  t.throws(() => create(`${folder}/none/s`), { code: "NotFound", field: "--socket" });
  const { handle, path } = listen(t);
  const successor = create(path);
  native.closeLocalListener(handle);
  t.ok(existsSync(path));
  native.closeLocalListener(successor);
  t.notOk(existsSync(path));
});

t.test("one that connects and leaves for ever: others are answered, nothing piles up", async (t) => {
  const { path, pids } = listen(t);
  const before = descriptors();
  const flood = spawn(
    "python3",
    [
      "-u",
      "-c",
      `${CLIENT}n = 0
while True:
    s = socket.socket(socket.AF_UNIX); s.connect(path); s.close(); n += 1
    if n == 20000: print("begun")
`,
      path,
    ],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  t.teardown(() => flood.kill("SIGKILL"));
  await firstLine(flood);
  const done = await runProgram(python(path, "print(all(hello() == b'hello' for i in range(200)))"));
  t.equal(done.output, "True");
  t.ok(descriptors() < before + 200, `${descriptors() - before} descriptors more`);
  const exited = ended(flood);
  flood.kill("SIGKILL");
  await exited;
  t.ok(pids.length < 20_000, `${pids.length} of more than 20,000 came up at all`);
  t.ok(await eventually(() => descriptors() <= before), "all are closed");
});

t.test("a crowd that stays while this thread is busy: one of another caller is among the first", async (t) => {
  const path = newPath();
  const pids: number[] = [];
  const open: number[] = [];
  const handle = native.createLocalListener(path, (descriptor) => {
    pids.push(native.peerProcess(descriptor).pid);
    open.push(descriptor);
  });
  /** Connects so often, says so by a file, and stays. */
  const body = (n: number, flag: string) =>
    `all = []\nfor i in range(${n}):\n    s = socket.socket(socket.AF_UNIX); s.connect(path); all.append(s)\nopen("${flag}", "w").close()\nsys.stdin.read()`;
  const start = (n: number, flag: string) =>
    spawn("python3", ["-u", "-c", CLIENT + body(n, flag), path], { stdio: ["pipe", "ignore", "inherit"] });
  // All connect while nothing is taken: the event loop is blocked until they are there.
  const blockUntil = (flag: string) => {
    const end = Date.now() + 20_000;
    const forever = new Int32Array(new SharedArrayBuffer(4));
    while (!existsSync(flag) && Date.now() < end) {
      Atomics.wait(forever, 0, 0, 10);
    }
    // The listener takes what is still in the kernel's queue.
    Atomics.wait(forever, 0, 0, 500);
    t.ok(existsSync(flag));
  };
  const flags = [newPath(), newPath(), newPath()] as const;
  const crowd = start(64, flags[0]);
  blockUntil(flags[0]);
  const one = start(1, flags[1]);
  blockUntil(flags[1]);
  t.ok(await eventually(() => pids.length === 65));
  const place = pids.indexOf(one.pid ?? 0);
  t.ok(place >= 0 && place <= 4, `at place ${place}`);
  // What waits of one caller is bounded: the oldest go.
  const many = start(500, flags[2]);
  blockUntil(flags[2]);
  t.ok(await eventually(() => pids.length >= 65 + 2 + 64), "two that were handed over at once, and the last 64");
  // However slow the listener's thread was: the others went before this one could take them.
  t.ok(pids.length < 65 + 250, `${pids.length} were handed over`);
  for (const child of [crowd, one, many]) {
    child.kill("SIGKILL");
  }
  native.closeLocalListener(handle);
  for (const descriptor of open) {
    t.ok(fstatSync(descriptor).isSocket());
    closeSync(descriptor);
  }
});

t.test("a crowd comes two by two: the event loop looks at others in between", async (t) => {
  const path = newPath();
  let turns = 0;
  let counting = true;
  const inTurn = new Map<number, number>();
  const handle = native.createLocalListener(path, (descriptor) => {
    inTurn.set(turns, (inTurn.get(turns) ?? 0) + 1);
    closeSync(descriptor);
    // So long that the listener's thread has the next ones ready before this turn is over.
    const end = performance.now() + 1;
    while (performance.now() < end) {
      // Works.
    }
  });
  const count = () => {
    turns += 1;
    if (counting) {
      setImmediate(count);
    }
  };
  count();
  const body =
    "all = [socket.socket(socket.AF_UNIX) for i in range(60)]\nfor s in all: s.connect(path)\nsys.stdin.read()";
  const crowd = spawn("python3", ["-u", "-c", CLIENT + body, path], { stdio: ["pipe", "ignore", "inherit"] });
  const come = () => [...inTurn.values()].reduce((sum, n) => sum + n, 0);
  t.ok(await eventually(() => come() === 60), "all come");
  t.ok(Math.max(...inTurn.values()) <= 2, `${Math.max(...inTurn.values())} at most in one turn`);
  counting = false;
  crowd.kill("SIGKILL");
  native.closeLocalListener(handle);
});

t.test("a caller that is held: its connections wait, another's come, and they come in the end", async (t) => {
  const { handle, path, pids } = listen(t);
  const flag = newPath();
  const held = spawn(
    "python3",
    [
      "-u",
      "-c",
      `${CLIENT}print("ready"); sys.stdin.readline(); print(all(hello() == b'hello' for i in range(3))); sys.stdin.read()`,
      path,
    ],
    { stdio: ["pipe", "pipe", "inherit"] },
  );
  t.teardown(() => held.kill("SIGKILL"));
  await firstLine(held);
  const pid = held.pid ?? 0;
  native.holdLocalCaller(handle, pid, 60_000);
  held.stdin.write("go\n");
  // Others are served one after another, so its connection has been seen by now.
  for (let i = 0; i < 20; i++) {
    t.equal((await runProgram(python(path, "print(hello() == b'hello')"))).output, "True");
  }
  t.notOk(pids.includes(pid), "it is held");
  held.kill("SIGKILL");
  const late = spawn(
    "python3",
    ["-u", "-c", `${CLIENT}open("${flag}", "w").close(); sys.stdin.readline(); print(hello() == b'hello')`, path],
    { stdio: ["pipe", "pipe", "inherit"] },
  );
  t.teardown(() => late.kill("SIGKILL"));
  t.ok(await eventually(() => existsSync(flag)));
  native.holdLocalCaller(handle, late.pid ?? 0, 300);
  const from = performance.now();
  late.stdin.write("go\n");
  t.equal(await firstLine(late), "True");
  t.ok(performance.now() - from > 200, "after its time");
  native.closeLocalListener(handle);
  t.throws(() => native.holdLocalCaller(handle, pid, 1), { code: "Closed" });
});

const allowed = /^Cpus_allowed_list:\t(.*)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "";
/** The last core that this process may run on. */
const CORE = /\d+$/.exec(allowed)?.[0] ?? "";
/** Where there is but one, a thread has nowhere to move. */
const MOVES = allowed === CORE ? { skip: "this process has one core" } : {};

/** The cores that the listener's threads of a process may run on, as the kernel tells them. */
function listenerCores(pid: number | string): string[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((thread) => {
    const status = readFileSync(`/proc/${pid}/task/${thread}/status`, "utf8");
    const cores = /^Cpus_allowed_list:\t(.*)$/m.exec(status)?.[1] ?? "";
    return status.startsWith("Name:\twl-listener\n") ? [cores] : [];
  });
}

/** Connects and leaves for ever, bound to one core, beside so many processes that do nothing but keep that core. */
function flood(path: string, beside: number) {
  const body = `import os
${CLIENT}parent = os.getpid()
for i in range(${beside}):
    if os.fork() == 0:
        while os.getppid() == parent: pass
        os._exit(0)
n = 0
while True:
    s = socket.socket(socket.AF_UNIX); s.connect(path); s.close(); n += 1
    if n == 2000: print("begun")
`;
  const command = ["--cpu-list", CORE, "python3", "-u", "-c", body, path];
  return spawn("taskset", command, { stdio: ["ignore", "pipe", "inherit"] });
}

t.test("a flood is served on its own core, while it lasts", MOVES, async (t) => {
  const { path } = listen(t);
  const child = flood(path, 0);
  t.teardown(() => child.kill("SIGKILL"));
  await firstLine(child);
  t.ok(await eventually(() => listenerCores("self").includes(CORE)), "it follows");
  const exited = ended(child);
  child.kill("SIGKILL");
  await exited;
  const back = await eventually(async () => {
    await runProgram(python(path, "hello()"));
    return listenerCores("self").every((cores) => cores !== CORE);
  });
  t.ok(back, "it is back with one of the next who connect");
});

t.test("on a core on which it waits itself it does not stay", MOVES, async (t) => {
  const path = newPath();
  const body = `import { closeSync } from "node:fs";
const listener = native.createLocalListener(${JSON.stringify(path)}, closeSync);
console.log("ready");
process.stdin.once("end", () => native.closeLocalListener(listener)).resume();`;
  // Without the right to go before others.
  const command = ["--bounding-set", "-sys_nice", ...nodeProgram(body)];
  const listening = spawn("setpriv", command, { stdio: ["pipe", "pipe", "inherit"] });
  t.teardown(() => listening.kill("SIGKILL"));
  await firstLine(listening);
  const child = flood(path, 5);
  t.teardown(() => child.kill("SIGKILL"));
  await firstLine(child);
  const pid = listening.pid ?? 0;
  t.ok(await eventually(() => listenerCores(pid).includes(CORE)), "it follows");
  t.ok(await eventually(() => !listenerCores(pid).includes(CORE)), "and leaves, though the flood goes on");
  t.equal(child.exitCode, null);
});

t.test("closed with connections that wait: they end", async (t) => {
  const { handle, path } = listen(t, false);
  const socket = connect(path);
  await new Promise((resolve) => socket.once("connect", resolve));
  native.closeLocalListener(handle);
  const refused = connect(path);
  const [error] = (await new Promise((resolve) => refused.once("error", (...all) => resolve(all)))) as [Error];
  t.match(error.message, /ENOENT/);
  socket.destroy();
});
