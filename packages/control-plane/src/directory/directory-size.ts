import { type Holding, NodeState } from "@weightline/proto/common";
import type { Directory, DirectorySize, NodeRecord } from "./directory.ts";
import { shownIdentities } from "./worker-view.ts";

/** Scrapers that come more often get the last count. */
const COUNT_INTERVAL_MS = 10_000;

type Countable = Pick<Directory, "nodes" | "sources" | "size">;

async function count(directory: Countable): Promise<DirectorySize> {
  if (directory.size !== undefined) {
    return directory.size();
  }
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
  directory: Countable,
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

/** A list of holdings stays the same object as long as nothing in it changes: most nodes are looked at once. */
const shownOf = new WeakMap<readonly Holding[], readonly string[]>();

function shownSources(holdings: readonly Holding[]): readonly string[] {
  let shown = shownOf.get(holdings);
  if (shown === undefined) {
    shown = holdings.flatMap(shownIdentities).map(({ sourceId }) => sourceId);
    shownOf.set(holdings, shown);
  }
  return shown;
}

/**
 * Counts records without making anything of them. `stock` gives each source id's number of stock workers; `isLive` tells
 * which nodes are not lost.
 */
export function countRecords(
  records: Iterable<NodeRecord>,
  isLive: (record: NodeRecord) => boolean,
  stock: Iterable<readonly [sourceId: string, workers: number]>,
): DirectorySize {
  const size: DirectorySize = { nodes: { ready: 0, draining: 0, lost: 0 }, sources: 0, workers: 0 };
  const sources = new Set<string>();
  for (const record of records) {
    if (!isLive(record)) {
      size.nodes.lost += 1;
      continue;
    }
    size.nodes[record.state === NodeState.DRAINING ? "draining" : "ready"] += 1;
    const shown = shownSources(record.holdings);
    size.workers += shown.length;
    for (const sourceId of shown) {
      sources.add(sourceId);
    }
  }
  for (const [sourceId, workers] of stock) {
    sources.add(sourceId);
    size.workers += workers;
  }
  size.sources = sources.size;
  return size;
}
