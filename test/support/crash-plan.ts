import { existsSync, readFileSync } from "node:fs";
import { CRASH_PLAN, type CrashPlan } from "./crash-hook.ts";
import { ROOT } from "./program.ts";

/** Environment of an agent that is killed at a step; see crash-hook.ts. */
export function crashEnvironment(plan: CrashPlan): Record<string, string> {
  return {
    NODE_OPTIONS: `--disable-warning=ExperimentalWarning --import=${ROOT}test/support/crash-hook.ts`,
    [CRASH_PLAN]: JSON.stringify(plan),
  };
}

/** A step as the hook wrote it. */
export interface CrashStep {
  role: "agent" | "mover";
  step: string;
  /** Which one of this text in its process. */
  nth: number;
  fired: boolean;
}

/** The steps of a log, in their order. */
export function readSteps(log: string): CrashStep[] {
  const counts = new Map<string, number>();
  return (existsSync(log) ? readFileSync(log, "utf8").trim().split("\n") : [])
    .filter((line) => line !== "")
    .map((line) => {
      const [, role = "", step = "", fired] = /^(\w+) \d+ (.*?)( FIRED)?$/.exec(line) ?? [];
      const nth = (counts.get(`${role} ${step}`) ?? 0) + 1;
      counts.set(`${role} ${step}`, nth);
      return { role: role as "agent" | "mover", step, nth, fired: fired !== undefined };
    });
}
