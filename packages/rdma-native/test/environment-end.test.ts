import { mkdtempSync, rmSync } from "node:fs";
import t from "tap";
import { nodeProgram, runProgram } from "./agent-helpers.ts";

const store = mkdtempSync("/dev/shm/weightline-end-");
t.teardown(() => rmSync(store, { recursive: true }));

/** Everything that has a thread or a handle, open; events on their way. */
const OPEN = `
import { mkdirSync, mkdtempSync } from "node:fs";
import { spawn } from "node:child_process";
const store = mkdtempSync("${store}/s-"); mkdirSync(store + "/holdings");
const view = await native.openStoreView(store, "");
const server = native.createDescriptorServer(store + "/s.fd", view, () => {});
const mover = native.createMover({ store, bind: ["127.0.0.1"], port: 0 }, () => {});
const children = Array.from({ length: 20 }, () => spawn("sleep", ["60"]));
for (const child of children) native.watchProcess(native.openProcess(child.pid).process, () => {});
native.watchProcess(native.openProcess(process.pid).process, () => {});
const lock = await native.lockStore(store + "/lock", 0);
native.lockStore(store + "/lock", 600_000).catch(() => {});
for (const child of children) child.kill("SIGKILL");
`;

/** Starts workers that open everything, and ends each. */
const worker = (end: string) => {
  const code = `${nodeProgram(OPEN).at(-1)}
import { parentPort } from "node:worker_threads";
parentPort.postMessage("open");
setInterval(() => {}, 1000);
${end}`;
  return `
import { writeFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
const file = "${store}/worker-" + process.pid + ".mts";
writeFileSync(file, ${JSON.stringify(code)});
for (let i = 0; i < 3; i++) {
  const worker = new Worker(file, { execArgv: [] });
  const gone = new Promise((resolve) => worker.once("exit", resolve));
  await new Promise((resolve, reject) => { worker.once("message", resolve); worker.once("error", reject); });
  ${end === "" ? "await worker.terminate();" : ""}
  await gone;
}
console.log("done");
`;
};

const ENDS: [string, string, number, string][] = [
  ["process.exit", `${OPEN}\nconsole.log("done");\nprocess.exit(0);`, 0, "done"],
  [
    "an uncaught error",
    `${OPEN}\nconsole.log("done");\nprocess.on("uncaughtException", () => process.exit(3));\nthrow new Error("x");`,
    3,
    "done",
  ],
  ["a worker that is terminated", worker(""), 0, "done"],
  ["a worker that calls process.exit", worker("process.exit(0);"), 0, "done"],
  [
    "handles that nobody holds any more",
    `${OPEN.replace("600_000", "0")}\nawait (async () => { for (let i = 0; i < 50; i++) { native.createDescriptorServer(store + "/x" + i, view, () => {}); native.watchProcess(native.openProcess(process.pid).process, () => {}); } })();\nfor (let i = 0; i < 5; i++) { globalThis.gc(); await new Promise((resolve) => setTimeout(resolve, 20)); }\nconsole.log("done");\nprocess.exit(0);`,
    0,
    "done",
  ],
];

for (const [name, program, code, output] of ENDS) {
  t.test(`everything open, and the end by ${name}: no hang, no crash`, async (t) => {
    const [node = "", ...parameters] = nodeProgram(program);
    const done = await runProgram([node, "--expose-gc", ...parameters], { timeoutMs: 60_000 });
    t.same(done, { code, output });
  });
}

t.test("an error in a callback is the program's uncaught error, and the next callback still comes", async (t) => {
  const program = `
import { spawn } from "node:child_process";
const seen = [];
process.on("uncaughtException", (error) => seen.push(error.message));
const first = spawn("sleep", ["60"]), second = spawn("sleep", ["60"]);
native.watchProcess(native.openProcess(first.pid).process, () => { throw new Error("thrown"); });
native.watchProcess(native.openProcess(second.pid).process, () => seen.push("second"));
first.kill("SIGKILL"); second.kill("SIGKILL");
for (let i = 0; i < 500 && seen.length < 2; i++) await new Promise((resolve) => setTimeout(resolve, 20));
console.log(seen.sort().join(","));
`;
  t.same(await runProgram(nodeProgram(program)), { code: 0, output: "second,thrown" });
});
