import type { Directory, DirectorySize } from "./directory.ts";

/** Counting reads everything: scrapers that come more often get the last count. */
const COUNT_INTERVAL_MS = 10_000;

/**
 * Counts what a directory holds, at most every {@link COUNT_INTERVAL_MS} and one at a time. `undefined` while it cannot be
 * counted; a count that takes long is still taken for the next caller.
 */
export function createSizeCounter(
  directory: Pick<Directory, "size">,
  monotonicMs: () => number = () => performance.now(),
): () => Promise<DirectorySize | undefined> {
  let last: { size: DirectorySize; at: number } | undefined;
  let running: Promise<DirectorySize | undefined> | undefined;
  const run = async () => {
    try {
      last = { size: await directory.size(), at: monotonicMs() };
    } catch {
      // The backend watch says what is wrong; an old count would hide it.
      last = undefined;
    }
    running = undefined;
    return last?.size;
  };
  return async () => {
    if (last !== undefined && monotonicMs() - last.at < COUNT_INTERVAL_MS) {
      return last.size;
    }
    running ??= run();
    return running;
  };
}
