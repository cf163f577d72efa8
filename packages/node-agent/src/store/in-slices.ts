import { setImmediate as nextTurn } from "node:timers/promises";

/** How long others on the event loop wait at most, apart from a single item that takes longer. */
const SLICE_MS = 5;

/** What `work` gives for each item, in their order; the event loop goes on in between. For work that never waits. */
export async function mapInSlices<Item, Result>(
  items: readonly Item[],
  work: (item: Item) => Result,
): Promise<Array<Awaited<Result>>> {
  const results: Array<Awaited<Result>> = [];
  let sliceEnds = performance.now() + SLICE_MS;
  for (const item of items) {
    results.push(await work(item));
    if (performance.now() > sliceEnds) {
      await nextTurn();
      sliceEnds = performance.now() + SLICE_MS;
    }
  }
  return results;
}
