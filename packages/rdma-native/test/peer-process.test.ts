import { spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmdirSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { native } from "@weightline/rdma-native";
import t, { type Test } from "tap";
import { ended, eventually, firstLine, nodeProgram, withoutCall } from "./agent-helpers.ts";
import { newId } from "./native-helpers.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-peer-`);
t.teardown(() => rmSync(folder, { recursive: true }));

const CONNECT = "import socket,sys,time\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n";

async function connectedChild(t: Test) {
  const path = `${folder}/${newId()}.sock`;
  // Not read: the end of the stream would close the socket.
  const server = createServer({ pauseOnConnect: true });
  t.teardown(() => server.close());
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const child = spawn("python3", ["-c", `${CONNECT}time.sleep(600)`, path], { stdio: "ignore" });
  t.teardown(() => child.kill("SIGKILL"));
  const socket = await connected;
  t.teardown(() => socket.destroy());
  return { child, descriptor: (socket as unknown as { _handle: { fd: number } })._handle.fd };
}

t.test("who is at a socket, and the end of the process", async (t) => {
  const { child, descriptor } = await connectedChild(t);
  const peer = native.peerProcess(descriptor);
  t.match(peer, { pid: child.pid, uid: process.getuid?.(), gid: process.getgid?.() });
  t.match(peer.source, /^(SO_PEERPIDFD|pidfd_open)$/);
  t.equal(peer.cgroup, native.openProcess(process.pid).cgroup, "the same cgroup as this process");
  t.ok(native.processAlive(peer.process));
  const told: string[] = [];
  native.watchProcess(peer.process, () => told.push("first"));
  native.watchProcess(peer.process, () => told.push("second"));
  child.kill("SIGKILL");
  t.ok(await eventually(() => told.length === 2));
  t.same(told.sort(), ["first", "second"], "each callback once");
  t.notOk(native.processAlive(peer.process));
  native.watchProcess(peer.process, () => told.push("late"));
  t.ok(await eventually(() => told.length === 3), "a process that has ended already is told at once");
  await sleep(100);
  t.equal(told.length, 3, "and none twice");
  native.closeProcess(peer.process);
  native.closeProcess(peer.process);
  t.throws(() => native.processAlive(peer.process), { code: "Closed" });
  t.throws(() => native.watchProcess(peer.process, () => undefined), { code: "Closed" });
});

t.test("a signal that comes while a process is asked for does not make it seem dead", async (t) => {
  const { child, descriptor } = await connectedChild(t);
  let signals = 0;
  process.on("SIGUSR2", () => signals++);
  const flood = spawn("python3", ["-c", `import os\nwhile True: os.kill(${process.pid}, 12)`], { stdio: "ignore" });
  t.teardown(() => flood.kill("SIGKILL"));
  t.ok(await eventually(() => signals > 0));
  const seen = { alive: 0, dead: 0, found: 0 };
  let asked = 0;
  signals = 0;
  while (asked < 500 || signals <= 100) {
    for (let j = 0; j < 5; j++) {
      asked += 1;
      const peer = native.peerProcess(descriptor);
      seen.found += peer.pid === child.pid ? 1 : 0;
      seen[native.processAlive(peer.process) ? "alive" : "dead"] += 1;
      native.closeProcess(peer.process);
    }
    await new Promise(setImmediate);
  }
  t.same(seen, { alive: asked, dead: 0, found: asked }, `${signals} signals came meanwhile`);
});

t.test("a closed handle is told nothing; others of the same process are", async (t) => {
  const { child, descriptor } = await connectedChild(t);
  const peers = Array.from({ length: 20 }, () => native.peerProcess(descriptor));
  const told: number[] = [];
  for (const [i, { process }] of peers.entries()) {
    native.watchProcess(process, () => told.push(i));
  }
  for (const { process } of peers.slice(0, 10)) {
    native.closeProcess(process);
  }
  // The numbers of the closed descriptors come again.
  const again = native.peerProcess(descriptor);
  native.watchProcess(again.process, () => told.push(20));
  child.kill("SIGKILL");
  t.ok(await eventually(() => told.length >= 11));
  await sleep(100);
  t.same(
    told.sort((a, b) => a - b),
    [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
  );
});

t.test("a peer that has ended is refused, and so is a number that is no process", async (t) => {
  const { child, descriptor } = await connectedChild(t);
  const gone = ended(child);
  child.kill("SIGKILL");
  await gone;
  t.throws(() => native.peerProcess(descriptor), { code: "Refused", field: "pid", value: String(child.pid) });
  t.throws(() => native.openProcess(4_194_304), { code: "NotFound", field: "pid" });
  for (const pid of [0, -1, 4_194_305, 1.5]) {
    t.throws(() => native.openProcess(pid), { code: "InvalidArgument", field: "pid" });
  }
  const file = spawn("true");
  await ended(file);
  t.throws(() => native.openProcess(file.pid ?? 0), { code: "NotFound" });
  const noSocket = openSync("/dev/null", "r");
  t.throws(() => native.peerProcess(noSocket), "no socket");
  closeSync(noSocket);
});

/** Says who connects, in a process of its own. */
const PEER_PROGRAM = `
import { createServer } from "node:net";
import { readFileSync } from "node:fs";
const server = createServer((socket) => {
  const peer = native.peerProcess(socket._handle.fd);
  const raw = readFileSync("/proc/" + peer.pid + "/cgroup", "utf8");
  console.log(JSON.stringify({ ...peer, process: native.processAlive(peer.process), own: native.openProcess(process.pid).cgroup, raw }));
  native.watchProcess(peer.process, () => { console.log("ended"); process.exit(0); });
});
setInterval(() => {}, 1000);
server.listen(process.argv.at(-1), () => console.log("listens"));
`;

async function askProgram(t: Test, wrap: (command: string[]) => string[], join = "") {
  const path = `${folder}/${newId()}.sock`;
  const [program = "", ...parameters] = wrap([...nodeProgram(PEER_PROGRAM), path]);
  const child = spawn(program, parameters, { stdio: ["ignore", "pipe", "inherit"] });
  t.teardown(() => child.kill("SIGKILL"));
  await firstLine(child);
  const said = firstLine(child);
  const client = spawn("python3", ["-c", `${join}${CONNECT}time.sleep(600)`, path], { stdio: "ignore" });
  t.teardown(() => client.kill("SIGKILL"));
  const peer = JSON.parse(await said);
  client.kill("SIGKILL");
  const { code } = await ended(child);
  return { peer, client, code };
}

t.test("a kernel without SO_PEERPIDFD: pidfd_open does", async (t) => {
  const SO_PEERPIDFD = { number: 55, errno: 92, argument: { index: 2, value: 77 } };
  const { peer, client, code } = await askProgram(t, (command) => withoutCall(SO_PEERPIDFD, command));
  t.match(peer, {
    source: "pidfd_open",
    pid: client.pid,
    process: true,
    cgroup: native.openProcess(process.pid).cgroup,
  });
  t.equal(code, 0, "and it tells of the end");
});

const CGROUP2 = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].find((path) => existsSync(`${path}/cgroup.procs`));

/** Two sibling cgroups as kubelet makes them; undefined where none can be made. */
function makePods(t: Test): { top: string; name: string } | undefined {
  const name = `weightline-${newId().slice(0, 8)}`;
  const top = `${CGROUP2}/${name}`;
  const folders = [top, `${top}/kubepods`, `${top}/kubepods/a`, `${top}/kubepods/b`];
  try {
    for (const path of folders) {
      mkdirSync(path);
    }
  } catch {
    return undefined;
  }
  t.teardown(() =>
    eventually(() => {
      for (const path of folders.toReversed().filter((one) => existsSync(one))) {
        try {
          rmdirSync(path);
        } catch {
          return false;
        }
      }
      return true;
    }),
  );
  return { top, name };
}

t.test("a pod seen from a cgroup namespace keeps the name of the pods' folder", async (t) => {
  const pods = makePods(t);
  if (pods === undefined) {
    t.pass("not run: no cgroup can be made here");
    return;
  }
  const { top, name } = pods;
  const join = `open("${top}/kubepods/b/cgroup.procs","w").write("0")\n`;
  const enter = `echo 0 >${top}/kubepods/a/cgroup.procs && exec unshare --cgroup --mount sh -c`;
  const seen = await askProgram(t, (command) => ["sh", "-c", `${enter} 'exec "$@"' sh "$@"`, "sh", ...command], join);
  t.match(seen.peer.raw, /^0::\/\.\.\/b$/m, "the kernel hides it");
  t.equal(seen.peer.cgroup, `/${name}/kubepods/b`);
  const hide = "mount -t tmpfs none /sys/fs/cgroup";
  const unseen = await askProgram(
    t,
    (command) => ["sh", "-c", `${enter} '${hide}; exec "$@"' sh "$@"`, "sh", ...command],
    join,
  );
  t.equal(unseen.peer.cgroup, "/../b", "without the hierarchy it stays as it is");
});

t.test("outside namespaces the path is the kernel's", (t) => {
  const lines = readFileSync("/proc/self/cgroup", "utf8").trim().split("\n");
  const paths = lines.map((line) => line.slice(line.indexOf(":", line.indexOf(":") + 1) + 1));
  const { cgroup } = native.openProcess(process.pid);
  t.ok(paths.includes(cgroup), cgroup);
  t.end();
});
