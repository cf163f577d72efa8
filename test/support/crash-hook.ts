// Loaded into an agent and its mover by NODE_OPTIONS=--import: counts the steps that change something durable or cross the
// channel between the two, writes each into a log before it is done, and kills there. Production code knows nothing of it.
import childProcess, { type ChildProcess } from "node:child_process";
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import promises from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { basename } from "node:path";

/** Who ends at a step. "group" is the whole process group of the agent. */
export type Victim = "agent" | "mover" | "both" | "group";

/** Which step kills; none when it is left out. */
export interface CrashPlan {
  /** File to which every step is appended: "agent 3 rename record.json", with " FIRED" behind the one that kills. */
  log: string;
  role?: "agent" | "mover";
  /** A step's text, like "rename record.json" or "order check". */
  step?: string;
  /** Which one of that text, from 1; 0: every one. */
  nth?: number;
  victim?: Victim;
}

export const CRASH_PLAN = "WEIGHTLINE_TEST_CRASH_PLAN";

const plan: CrashPlan | undefined =
  process.env[CRASH_PLAN] === undefined ? undefined : JSON.parse(process.env[CRASH_PLAN]);
const entry = basename(process.argv[1] ?? "");
const role = entry === "mover-main.ts" ? "mover" : process.argv[1]?.endsWith("/node-agent/src/main.ts") ? "agent" : "";
const seen = new Map<string, number>();
let count = 0;
let moverPid = 0;

function kill(victim: Victim): void {
  const mover = role === "mover" ? process.pid : moverPid;
  const agent = role === "mover" ? process.ppid : process.pid;
  const end = (pid: number) => pid > 0 && process.kill(pid, "SIGKILL");
  if (victim === "group") {
    process.kill(0, "SIGKILL");
    return;
  }
  // The other one first: this process ends in the call that kills itself.
  const others = victim === "both" ? [agent, mover] : victim === "agent" ? [agent] : [mover];
  for (const pid of others.toSorted((a, b) => Number(a === process.pid) - Number(b === process.pid))) {
    end(pid);
  }
}

function step(text: string): void {
  if (plan === undefined || role === "") {
    return;
  }
  const nth = (seen.get(text) ?? 0) + 1;
  seen.set(text, nth);
  count += 1;
  // A mover that follows the killed one counts anew: the plan is for one kill, unless it says every one.
  const fires =
    plan.role === role &&
    plan.step === text &&
    (plan.nth === 0 ||
      (plan.nth === nth && !(existsSync(plan.log) && readFileSync(plan.log, "utf8").includes(" FIRED"))));
  appendFileSync(plan.log, `${role} ${count} ${text}${fires ? " FIRED" : ""}\n`);
  if (fires) {
    kill(plan.victim ?? role);
  }
}

/** Progress and counts come by the clock: they are no steps. */
function ofReport(message: { report?: { kind: string; holdingId: string }; address?: string }): string | undefined {
  const kind = message.report?.kind;
  if (message.address !== undefined) {
    return "started";
  }
  return kind === "done" || kind === "failed" || kind === "damage" ? `report ${kind}` : undefined;
}

function ofOrder(message: { start?: unknown; order?: { kind: string } }): string {
  return message.order === undefined ? "start" : `order ${message.order.kind}`;
}

if (role === "agent") {
  const called = promises as unknown as Record<string, (...parameters: unknown[]) => Promise<unknown>>;
  for (const name of ["writeFile", "rename", "mkdir"]) {
    const original = called[name];
    called[name] = (...parameters) => {
      const path = String(parameters[name === "rename" ? 1 : 0]);
      if (path.includes("/holdings") || path.includes("node.json")) {
        step(`${name} ${/^[0-9a-f]{32}$/.test(basename(path)) ? "a holding's folder" : basename(path)}`);
      }
      return original?.(...parameters) ?? Promise.resolve();
    };
  }
  const spawn = childProcess.spawn;
  Object.assign(childProcess, {
    spawn(...parameters: Parameters<typeof spawn>): ChildProcess {
      const child = spawn(...parameters);
      moverPid = child.pid ?? 0;
      const send = child.send.bind(child) as (...all: unknown[]) => boolean;
      Object.assign(child, {
        send(...all: unknown[]) {
          step(ofOrder(all[0] as Parameters<typeof ofOrder>[0]));
          return send(...all);
        },
      });
      child.prependListener("message", (message) => {
        const text = ofReport(message as Parameters<typeof ofReport>[0]);
        if (text !== undefined) {
          step(text);
        }
      });
      return child;
    },
  });
  syncBuiltinESMExports();
}

if (role === "mover") {
  const on = process.on.bind(process) as (event: string, listener: (...all: unknown[]) => void) => NodeJS.Process;
  Object.assign(process, {
    on(event: string, listener: (...all: unknown[]) => void) {
      return on(event, (...all) => {
        if (event === "message") {
          step(ofOrder(all[0] as Parameters<typeof ofOrder>[0]));
        }
        listener(...all);
      });
    },
  });
  const send = process.send?.bind(process) as ((...all: unknown[]) => boolean) | undefined;
  Object.assign(process, {
    send(...all: unknown[]) {
      const text = ofReport(all[0] as Parameters<typeof ofReport>[0]);
      if (text !== undefined) {
        step(text);
      }
      return send?.(...all) ?? false;
    },
  });
}
