import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { runCommand } from "./program.ts";

/** Pid of an agent's mover; undefined while there is none. */
export async function moverOf(agentPid: number): Promise<number | undefined> {
  const { stdout } = await runCommand(["pgrep", "-P", String(agentPid), "-f", "mover-main"]);
  const [first] = stdout.trim().split("\n");
  return first === undefined || first === "" ? undefined : Number(first);
}

/** The mover's process, which must be there. Its number is a real one: 0 would name the test's own process group in a kill. */
export async function runningMoverOf(agentPid: number): Promise<number> {
  const pid = await moverOf(agentPid);
  if (pid === undefined || !(pid > 0)) {
    throw new Error(`process ${agentPid} has no mover`);
  }
  return pid;
}

/** Waits for something to be true; throws with `what` when it does not come. */
export async function until(what: string, test: () => Promise<boolean> | boolean, timeoutMs = 20_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await test())) {
    if (performance.now() > end) {
      throw new Error(`${what} did not come within ${timeoutMs} ms`);
    }
    await sleep(10);
  }
}

/** State letter of a process (R, S, T, t, Z, ...); "" when it is gone. */
export function processState(pid: number): string {
  try {
    return /^State:\s+(\S)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? "";
  } catch {
    return "";
  }
}

/** Who traces a process; 0 for nobody. */
export function tracerOf(pid: number): number {
  try {
    return Number(/^TracerPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0;
  }
}
