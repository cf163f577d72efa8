import type { Logger } from "@weightline/runtime";
import type { Holding } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { MoverClient } from "../mover/mover-client.ts";
import { persistentOrder } from "./persistent-order.ts";

/**
 * Proves what a damaged or suspect holding has and takes the marks off what is wrong, so that a fill brings it again; a
 * damaged one is a filling one from then on. In this order: whoever is killed in between finds it damaged again, and never
 * a filling holding whose wrong chunks are marked as right. Does nothing for any other holding.
 */
export async function mend(
  mover: MoverClient,
  registry: HoldingRegistry,
  holding: Holding,
  signal: AbortSignal,
  log: Logger,
): Promise<void> {
  const damaged = holding.record.state === "damaged";
  // Without a layout nothing was received: the mover makes all files anew.
  if (holding.layout !== undefined && (damaged || holding.suspect)) {
    if (damaged) {
      log.info({ event: "repair-begun", holding: holding.id }, "a damaged holding is filled again");
    }
    const done = await persistentOrder(mover, { kind: "repair", holdingId: holding.id }, { signal });
    holding.verifiedBytes = Number(done.verifiedBytes);
    const wrong = done.wrongChunks?.length ?? 0;
    if (wrong > 0) {
      holding.repairs += 1;
      log.warn(
        { event: "chunks-unmarked", holding: holding.id, chunks: wrong },
        "chunks that do not have their digest are filled again",
      );
    }
  }
  holding.suspect = false;
  if (damaged) {
    await registry.apply(holding, "refill");
  }
}
