// The local API's socket: fair to all who connect, whatever one of them does.
import { spawn } from "node:child_process";
import { closeSync, existsSync, fstatSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { connect, Socket } from "node:net";
import { tmpdir } from "node:os";
import { type LocalListenerHandle, native } from "@weightline/rdma-native";
import t, { type Test } from "tap";
import { ended, eventually, firstLine, runProgram } from "./agent-helpers.ts";

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
    if (descriptor < 0) {
      return;
    }
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
  const body = (n: number) =>
    `all = []\nfor i in range(${n}):\n    s = socket.socket(socket.AF_UNIX); s.connect(path); all.append(s)\nprint("there")\nsys.stdin.read()`;
  const start = (n: number) =>
    spawn("python3", ["-u", "-c", `${CLIENT}${body(n)}`, path], { stdio: ["pipe", "pipe", "inherit"] });
  // Both connect while nothing is taken: the event loop is blocked until both are there.
  const flag = newPath();
  const crowd = spawn(
    "sh",
    [
      "-c",
      `python3 -u -c "$1" "$2" <&3 & sleep 1; python3 -u -c "$3" "$2" <&3 & sleep 1; touch "$4"; wait`,
      "sh",
      `${CLIENT}${body(64)}`,
      path,
      `${CLIENT}${body(1)}`,
      flag,
    ],
    { stdio: ["ignore", "ignore", "inherit", "pipe"] },
  );
  const until = Date.now() + 20_000;
  while (!existsSync(flag) && Date.now() < until) {
    // Busy on purpose.
  }
  t.ok(existsSync(flag));
  t.ok(await eventually(() => pids.length === 65));
  const single = pids.find((pid) => pids.filter((other) => other === pid).length === 1);
  t.ok(single !== undefined && pids.indexOf(single) <= 4, `at place ${pids.indexOf(single ?? 0)}`);
  crowd.stdio[3]?.destroy();
  // What waits of one caller is bounded: the oldest go.
  const many = start(500);
  await firstLine(many);
  t.ok(await eventually(() => pids.length >= 65 + 64));
  many.kill("SIGKILL");
  native.closeLocalListener(handle);
  for (const descriptor of open) {
    t.ok(fstatSync(descriptor).isSocket());
    closeSync(descriptor);
  }
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
