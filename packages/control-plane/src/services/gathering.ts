import { setTimeout as sleep } from "node:timers/promises";

/**
 * Makes calls wait for one another: whoever awaits it within `ms` of the first goes on in the same turn of the event loop, in
 * the order in which they came. What they write then goes out together, and each process is woken once for all of them.
 */
export function createGathering(ms: number): () => Promise<void> {
  let gathering: Promise<void> | undefined;
  return () => {
    gathering ??= sleep(ms).then(() => {
      gathering = undefined;
    });
    return gathering;
  };
}
