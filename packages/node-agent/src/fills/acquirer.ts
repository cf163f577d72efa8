import { type Holding, nameKey } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { FillBoard, Progress, RunningFill } from "./fill-board.ts";
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
  const named = ({ sourceId, rank }: Wanted) => registry.named(sourceId, rank);
  const held = (wanted: Wanted) =>
    named(wanted).find(({ record, freeing }) => record.state === "complete" && freeing === undefined);

  /** What is about to be evicted may stay: that is seen first. */
  const heldOrPulled = async (wanted: Wanted, report: (progress: Partial<Progress>) => void, signal: AbortSignal) => {
    const freeing = named(wanted).flatMap((holding) => (holding.freeing === undefined ? [] : [holding.freeing]));
    await Promise.all(freeing);
    return (freeing.length > 0 ? held(wanted) : undefined) ?? puller.pull(wanted, report, signal);
  };

  return {
    held,
    fill(wanted, onBegin) {
      const key = nameKey(wanted.sourceId, wanted.rank);
      const running = board.find(key);
      if (running !== undefined) {
        return { fill: running, outcome: "waited" };
      }
      const onEnd = onBegin?.();
      const fill = board.start(key, (report, signal) => heldOrPulled(wanted, report, signal));
      if (onEnd !== undefined) {
        fill.done.then(onEnd, onEnd);
      }
      return { fill, outcome: "received" };
    },
  };
}
