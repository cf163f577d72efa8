import t from "tap";
import {
  HOLDING_STATES,
  type HoldingEvent,
  type HoldingStateName,
  nextState,
  recoveryStep,
} from "../src/holdings/holding-state.ts";

const EVENTS: HoldingEvent[] = ["filled", "damage-found", "refill", "evict"];

t.test(
  "every state and event: only what the table allows, eviction from everywhere, no way back from it",
  async (t) => {
    const allowed: Record<HoldingStateName, HoldingEvent[]> = {
      filling: ["filled", "evict"],
      complete: ["damage-found", "evict"],
      damaged: ["refill", "evict"],
      evicting: ["evict"],
    };
    for (const state of HOLDING_STATES) {
      for (const event of EVENTS) {
        const next = nextState(state, event);
        t.equal(next !== undefined, allowed[state].includes(event), `${state}: ${event}`);
        t.ok(state !== "evicting" || next === undefined || next === "evicting");
      }
    }
  },
);

t.test(
  "replay: killed after every step of every history of five events, recovery has an answer that serves nothing unproved",
  async (t) => {
    const histories = (length: number): HoldingEvent[][] =>
      length === 0 ? [[]] : histories(length - 1).flatMap((events) => EVENTS.map((event) => [...events, event]));
    let kills = 0;
    for (const history of histories(5)) {
      let state: HoldingStateName = "filling";
      for (const event of [undefined, ...history]) {
        state = (event === undefined ? state : nextState(state, event)) ?? state;
        for (const kind of ["load", "transfer", "offer"] as const) {
          const step = recoveryStep({ state, source: { kind } });
          kills += 1;
          // A complete one is checked before it is served; nothing else is served at all by the step itself.
          if ((step === "check") !== (state === "complete")) {
            t.fail(`${state} from ${kind}: ${step}`);
          }
          if (state === "filling" && kind === "offer" && step !== "evict") {
            t.fail("an offer is never resumed");
          }
        }
      }
    }
    t.ok(kills > 10_000, `${kills} kills`);
    t.equal(recoveryStep(undefined), "evict", "a folder without a record was never visible");
  },
);
