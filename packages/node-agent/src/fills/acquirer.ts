import { type Holding, nameKey } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { FillBoard, RunningFill } from "./fill-board.ts";
import type { Puller } from "./pull.ts";
import type { Wanted } from "./wanted.ts";

/** How a holding came to be here for this caller. */
export type AcquireOutcome = "held" | "received" | "waited";

export interface Acquired {
  holding: Holding;
  outcome: AcquireOutcome;
}

/** Makes what is wanted be held here. */
export interface Acquirer {
  /** A complete holding that is here now. */
  held(wanted: Wanted): Holding | undefined;
  /** The running fill of it, started when there is none: `onBegin` may refuse that by throwing, and returns what its end calls. */
  fill(wanted: Wanted, onBegin?: () => () => void): { fill: RunningFill<Holding>; outcome: AcquireOutcome };
}

export function createAcquirer(registry: HoldingRegistry, board: FillBoard<Holding>, puller: Puller): Acquirer {
  return {
    held: ({ sourceId, rank }) => registry.named(sourceId, rank).find(({ record }) => record.state === "complete"),
    fill(wanted, onBegin) {
      const key = nameKey(wanted.sourceId, wanted.rank);
      const running = board.find(key);
      if (running !== undefined) {
        return { fill: running, outcome: "waited" };
      }
      const onEnd = onBegin?.();
      const fill = board.start(key, (report, signal) => puller.pull(wanted, report, signal));
      if (onEnd !== undefined) {
        fill.done.then(onEnd, onEnd);
      }
      return { fill, outcome: "received" };
    },
  };
}
