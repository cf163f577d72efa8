/**
 * States of a holding:
 * - filling: bytes are coming, or wait for a source; children may read what is verified.
 * - complete: every chunk is verified and the object digest is known; attached and served.
 * - damaged: a chunk no longer has its digest; attached and served no more, refilled when no lease is on it.
 * - evicting: on its way out; its bytes count until the last user has gone.
 */
export const HOLDING_STATES = ["filling", "complete", "damaged", "evicting"] as const;
export type HoldingStateName = (typeof HOLDING_STATES)[number];

/** What can happen to a holding. */
export type HoldingEvent = "filled" | "damage-found" | "refill" | "evict";

const TRANSITIONS: Readonly<Record<HoldingStateName, Partial<Record<HoldingEvent, HoldingStateName>>>> = {
  filling: { filled: "complete", evict: "evicting" },
  complete: { "damage-found": "damaged", evict: "evicting" },
  damaged: { refill: "filling", evict: "evicting" },
  evicting: { evict: "evicting" },
};

/** The state after an event; undefined when the event cannot happen in that state. Pure. */
export function nextState(state: HoldingStateName, event: HoldingEvent): HoldingStateName | undefined {
  return TRANSITIONS[state][event];
}

/** What an agent does with a holding that it finds at its start. Pure: recovery carries it out. */
export type RecoveryStep = "check" | "resume-load" | "resume-transfer" | "refill" | "evict";

/** From the record alone; a folder without a record was never visible and is deleted. */
export function recoveryStep(
  record: { state: HoldingStateName; source: { kind: "load" | "transfer" | "offer" } } | undefined,
): RecoveryStep {
  if (record === undefined || record.state === "evicting") {
    return "evict";
  }
  if (record.state === "complete") {
    return "check";
  }
  if (record.state === "damaged") {
    return "refill";
  }
  switch (record.source.kind) {
    case "load":
      return "resume-load";
    case "transfer":
      return "resume-transfer";
    case "offer":
      return "evict";
  }
}
