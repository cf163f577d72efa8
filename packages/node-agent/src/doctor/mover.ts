import { type Check, error, ok, warning } from "./check.ts";

export interface MoverFacts {
  running: boolean;
  pid: number | undefined;
  restarts: number;
  /** Seconds since the agent's start. */
  agentSeconds: number;
}

/** More of them in an hour are no accident. */
const RESTARTS_PER_HOUR = 3;
const HOUR_S = 3600;

export function moverCheck({ running, pid, restarts, agentSeconds }: MoverFacts): Check {
  const times = `it was started again ${restarts} time(s) since the agent's start`;
  const cure = "look for `the mover ended` in the agent's log; its own last words are there too";
  if (!running) {
    return error(
      "mover",
      `the mover does not run now, and is started again after a pause of up to 5 s: ${times}; attaches go on, nothing is moved`,
      cure,
    );
  }
  if (restarts === 0) {
    return ok("mover", `the mover runs as process ${pid ?? "?"}, and never ended`);
  }
  const often = restarts > RESTARTS_PER_HOUR * Math.max(1, agentSeconds / HOUR_S);
  return warning("mover", `the mover runs as process ${pid ?? "?"}; ${times}${often ? ", which is often" : ""}`, cure);
}
