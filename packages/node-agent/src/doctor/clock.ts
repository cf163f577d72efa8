import { formatDuration } from "@weightline/runtime";
import { aheadMs, type ClockReading, isSkewed, SKEW_MAX_MS } from "../clock-reading.ts";
import { type Check, note, ok, warning } from "./check.ts";

/** Readings in Unix ms, and what passed in ms of the monotonic clock. */
export interface ClockFacts {
  /** Undefined: it did not tell. */
  controlPlane: ClockReading | undefined;
  /** How far the wall clock went since the agent's start, and the monotonic one. */
  wallPassedMs: number;
  monotonicPassedMs: number;
}

const JUMP_MAX_MS = 1000;

const CURE = "let a time service (chrony, systemd-timesyncd) keep the node's clock";

export function clockChecks(facts: ClockFacts): Check[] {
  return [skew(facts.controlPlane), jump(facts)];
}

function shown(ms: number): string {
  return formatDuration(Math.abs(ms) < 1000 ? Math.round(Math.abs(ms)) : Math.round(Math.abs(ms) / 1000) * 1000);
}

function skew(reading: ClockFacts["controlPlane"]): Check {
  if (reading === undefined) {
    return note("clock-skew", "the control plane did not tell its time: this node's clock is compared with nothing");
  }
  const difference = aheadMs(reading);
  const evidence = `this node's clock is ${shown(difference)} ${difference < 0 ? "behind" : "ahead of"} the control plane's`;
  return isSkewed(reading)
    ? warning("clock-skew", `${evidence}: times in logs do not fit together; nothing else depends on it`, CURE)
    : ok("clock-skew", `${evidence}, within ${formatDuration(SKEW_MAX_MS)}`);
}

function jump({ wallPassedMs, monotonicPassedMs }: ClockFacts): Check {
  const jumped = wallPassedMs - monotonicPassedMs;
  return Math.abs(jumped) > JUMP_MAX_MS
    ? note(
        "clock-jumps",
        `this node's clock was set ${jumped < 0 ? "back" : "forward"} by ${shown(jumped)} since the agent's start; lifetimes here run on the monotonic clock`,
        CURE,
      )
    : ok("clock-jumps", "this node's clock ran evenly since the agent's start");
}
