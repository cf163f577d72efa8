import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { native } from "@weightline/rdma-native";
import t from "tap";
import { firstLine, nodeProgram, runProgram } from "./agent-helpers.ts";

const store = mkdtempSync("/dev/shm/weightline-lock-");
t.teardown(() => rmSync(store, { recursive: true }));
let nextLock = 0;
const newLock = () => `${store}/lock-${nextLock++}`;

/** A process that holds the lock, or waits for it, until it is killed. */
function startProcess(body: string) {
  const [program = "", ...parameters] = nodeProgram(`${body}\nsetInterval(() => {}, 1000);`);
  return spawn(program, parameters, { stdio: ["ignore", "pipe", "inherit"] });
}

t.test("a child that inherited the lock keeps it, and is named", async (t) => {
  const path = newLock();
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
    value: path,
    message: `the store's lock ${path} is held by process ${child.pid}`,
  });
  t.ok(performance.now() - started >= 190, "it waited for the holder's end");
  const waiting = native.lockStore(path, 30_000);
  child.kill("SIGKILL");
  native.unlockStore(await waiting);
});

t.test("a mover that outlives its killed agent is the one that is named", async (t) => {
  const path = newLock();
  const agent = startProcess(
    `import { spawn } from "node:child_process";
const lock = await native.lockStore(${JSON.stringify(path)}, 0);
const mover = spawn("sleep", ["60"], { stdio: ["ignore", "ignore", "ignore", native.storeLockDescriptor(lock)] });
mover.once("spawn", () => console.log(mover.pid));`,
  );
  const mover = Number(await firstLine(agent));
  const gone = new Promise((resolve) => agent.once("exit", resolve));
  agent.kill("SIGKILL");
  await gone;
  await t.rejects(native.lockStore(path, 50), {
    code: "InUse",
    message: `the store's lock ${path} is held by process ${mover}`,
  });
  process.kill(mover, "SIGKILL");
  native.unlockStore(await native.lockStore(path, 30_000));
});

t.test("who only waits for the lock is not named", async (t) => {
  const path = newLock();
  const lock = await native.lockStore(path, 0);
  const waiting = startProcess(`console.log("there"); await native.lockStore(${JSON.stringify(path)}, 60_000);`);
  t.teardown(() => waiting.kill("SIGKILL"));
  await firstLine(waiting);
  await t.rejects(native.lockStore(path, 500), {
    code: "InUse",
    message: `the store's lock ${path} is held by process ${process.pid}`,
  });
  native.unlockStore(lock);
});

t.test("waiting keeps a process alive, but does not hold up its end", async (t) => {
  const path = newLock();
  const lock = await native.lockStore(path, 0);
  const call = (waitMs: number) => `native.lockStore(${JSON.stringify(path)}, ${waitMs})`;
  const refused = await runProgram(nodeProgram(`await ${call(300)}.catch((error) => console.log(error.code));`));
  t.same(refused, { code: 0, output: "InUse" }, "the promise alone keeps it alive");
  const exits = await runProgram(
    nodeProgram(`${call(300_000)}; setTimeout(() => { console.log("ends"); process.exit(7); }, 50);`),
    { timeoutMs: 30_000 },
  );
  t.same(exits, { code: 7, output: "ends" }, "process.exit");
  native.unlockStore(lock);
});

t.test("a lock that cannot be opened, and arguments that are none", async (t) => {
  await t.rejects(native.lockStore(`${store}/none/lock`, 0), { code: "NotFound", field: "--store" });
  t.throws(() => native.lockStore(newLock(), -1), { code: "InvalidArgument", field: "waitMs" });
  t.throws(() => native.unlockStore({} as never), { code: "InvalidArgument" });
});
