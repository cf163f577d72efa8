import { spawn } from "node:child_process";
import { native } from "@weightline/rdma-native";
import t from "tap";
import { ended, eventually, firstLine, nodeProgram, runProgram } from "./agent-helpers.ts";

/** A parent that starts a mover-like child, says its pid, and stays. */
const PARENT = (parentPid: string) => `
import { spawn } from "node:child_process";
const child = ${JSON.stringify(nodeProgram(`native.dieWithParent(Number(process.argv.at(-1)));\nconsole.log(process.pid);\nsetInterval(() => {}, 1000);`))};
const started = spawn(child[0], [...child.slice(1), ${parentPid}], { stdio: ["ignore", "inherit", "inherit"] });
started.on("exit", (code) => { console.log("ended", code); process.exit(0); });
setInterval(() => {}, 1000);
`;

t.test("a child dies with its killed parent", async (t) => {
  const [program = "", ...parameters] = nodeProgram(PARENT("String(process.pid)"));
  const parent = spawn(program, parameters, { stdio: ["ignore", "pipe", "inherit"] });
  const child = native.openProcess(Number(await firstLine(parent))).process;
  t.ok(native.processAlive(child));
  const gone = ended(parent);
  parent.kill("SIGKILL");
  await gone;
  t.ok(await eventually(() => !native.processAlive(child)));
});

t.test("a child whose parent is another already ends at once", async (t) => {
  const { output } = await runProgram(nodeProgram(PARENT("String(process.ppid)")));
  t.equal(output, "ended 1");
  for (const pid of [0, -1, 4_194_305]) {
    t.throws(() => native.dieWithParent(pid), { code: "InvalidArgument", field: "parentPid" });
  }
});
