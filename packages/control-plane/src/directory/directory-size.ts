import { NodeState } from "@weightline/proto/common";
import type { Directory } from "./directory.ts";

/** How much a directory holds. */
export interface DirectorySize {
  nodes: { ready: number; draining: number; lost: number };
  sources: number;
  workers: number;
}

/** Counting reads everything: scrapers that come more often get the last count. */
const COUNT_INTERVAL_MS = 10_000;

async function count(directory: Pick<Directory, "nodes" | "sources">): Promise<DirectorySize> {
  const nodes = await directory.nodes();
  const sources = await directory.sources("");
  const of = (wanted: NodeState) => nodes.filter(({ state }) => state === wanted).length;
  return {
    nodes: { ready: of(NodeState.READY), draining: of(NodeState.DRAINING), lost: of(NodeState.LOST) },
    sources: sources.length,
    workers: sources.reduce((sum, { workers }) => sum + workers.length, 0),
  };
}

/**
 * Counts what a directory holds, at most every {@link COUNT_INTERVAL_MS} and one at a time. `undefined` while it cannot be
 * counted; a count that takes long is still taken for the next caller.
 */
export function createSizeCounter(
  directory: Pick<Directory, "nodes" | "sources">,
  monotonicMs: () => number = () => performance.now(),
): () => Promise<DirectorySize | undefined> {
  let last: { size: DirectorySize; at: number } | undefined;
  let running: Promise<DirectorySize | undefined> | undefined;
  const run = async () => {
    try {
      last = { size: await count(directory), at: monotonicMs() };
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
