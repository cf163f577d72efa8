import { type SourceIdentity, SourceStatus } from "@weightline/proto/p2p";
import type { WorkerQuery } from "./directory.ts";
import { type EncodedInstance, encodeInstance, encodeInstances, type ListedInstance } from "./instance-encoding.ts";
import { trainingStep } from "./training-step.ts";

/** What keeps a worker alive: its own heartbeats, or its node's announces, which all workers of the node share. */
export interface Life {
  /** Unix ms of the directory's clock. */
  updatedAtMs: number;
  /** Monotonic ms until which a READY worker is READY; afterwards it counts as STALE. */
  freshUntil: number;
  /** Monotonic ms after which the worker is listed no more. */
  goneAt: number;
}

/** A worker as lists show it. */
export interface ListedWorker {
  workerId: string;
  rank: number;
  status: SourceStatus;
  /** From 0 to 1. */
  load: number | undefined;
  accelerator: string;
  topology: Readonly<Record<string, string>>;
  life: Life;
  /** True when `life` is that of a node, which changes without a word to this view. */
  ofNode: boolean;
  /** True for what only our own agents may be told of. */
  hidden: boolean;
}

interface Entry<Worker extends ListedWorker> {
  worker: Worker;
  encoded: EncodedInstance;
  removed: boolean;
}

/** Lists of one view that are kept encoded. */
const KEPT_LISTS_MAX = 8;
/** How long an encoded list with workers of nodes stands, in ms: their announces come all the time and change only times. */
const NODE_LIST_MS = 1000;

/** The workers of one source, in memory, ready to be listed. */
export interface SourceView<Worker extends ListedWorker = ListedWorker> {
  readonly sourceId: string;
  readonly identity: SourceIdentity;
  readonly size: number;
  get(workerId: string): Worker | undefined;
  /** Adds or replaces a worker. A change of the object that `life` is must be followed by `touch`. */
  put(worker: Worker): void;
  remove(workerId: string): void;
  /** A worker's life or status was changed in place. */
  touch(): void;
  /** All workers that are not gone, hidden ones too, in no order. */
  workers(): Worker[];
  /** What a query of this source lists, newest first. */
  select(query: WorkerQuery): ListedInstance[];
  /** The same as an encoded ListSourcesResponse. */
  list(query: WorkerQuery): Uint8Array;
}

/** Newest first; equal times by id. */
export function newestFirst(
  a: { updatedAtMs: number; workerId: string },
  b: { updatedAtMs: number; workerId: string },
): number {
  return b.updatedAtMs - a.updatedAtMs || compareIds(a.workerId, b.workerId);
}

function compareIds(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** The status that a worker has now: READY ends with its heartbeats. */
export function statusNow({ status, life }: ListedWorker, nowMs: number): SourceStatus {
  return status === SourceStatus.READY && nowMs >= life.freshUntil ? SourceStatus.STALE : status;
}

export function createSourceView<Worker extends ListedWorker>(
  source: { sourceId: string; identity: SourceIdentity },
  monotonicMs: () => number,
): SourceView<Worker> {
  const entries = new Map<string, Entry<Worker>>();
  const step = trainingStep(source.identity);
  /** Every entry, in the order of the last list: what is nearly sorted sorts quickly. */
  let order: Entry<Worker>[] = [];
  let someRemoved = false;
  const kept = new Map<string, { bytes: Uint8Array; until: number }>();

  const changed = () => kept.clear();

  const sorted = (): Entry<Worker>[] => {
    if (someRemoved) {
      order = order.filter(({ removed }) => !removed);
      someRemoved = false;
    }
    return order.sort(
      ({ worker: a }, { worker: b }) => b.life.updatedAtMs - a.life.updatedAtMs || compareIds(a.workerId, b.workerId),
    );
  };

  /** What is wanted, and until when that stays so if nothing is told. */
  const build = (query: WorkerQuery, now: number): { instances: ListedInstance[]; until: number } => {
    let until = Number.POSITIVE_INFINITY;
    const instances: ListedInstance[] = [];
    const limit = query.limit ?? Number.POSITIVE_INFINITY;
    for (const { worker, encoded } of sorted()) {
      const { life } = worker;
      if (worker.hidden || now >= life.goneAt) {
        continue;
      }
      until = Math.min(until, life.goneAt, life.freshUntil > now ? life.freshUntil : life.goneAt);
      if (worker.ofNode) {
        until = Math.min(until, now + NODE_LIST_MS);
      }
      if (
        (query.status === undefined || statusNow(worker, now) === query.status) &&
        (query.rank === undefined || worker.rank === query.rank) &&
        (query.minUpdatedAtMs === undefined || life.updatedAtMs >= query.minUpdatedAtMs) &&
        instances.length < limit
      ) {
        instances.push({ encoded, workerId: worker.workerId, updatedAtMs: life.updatedAtMs, load: worker.load });
      }
    }
    return { instances, until };
  };

  const excluded = ({ modelName, minTrainingStep }: WorkerQuery): boolean =>
    (modelName !== undefined && modelName !== source.identity.modelName) ||
    (minTrainingStep !== undefined && (step === undefined || step < minTrainingStep));

  const view: SourceView<Worker> = {
    sourceId: source.sourceId,
    identity: source.identity,
    get size() {
      return entries.size;
    },
    get: (workerId) => entries.get(workerId)?.worker,
    put(worker) {
      const known = entries.get(worker.workerId);
      const encoded = encodeInstance(source, worker);
      if (known === undefined) {
        const entry = { worker, encoded, removed: false };
        entries.set(worker.workerId, entry);
        order.push(entry);
      } else {
        known.worker = worker;
        known.encoded = encoded;
      }
      changed();
    },
    remove(workerId) {
      const entry = entries.get(workerId);
      if (entry !== undefined) {
        entry.removed = true;
        someRemoved = true;
        entries.delete(workerId);
        changed();
      }
    },
    touch: changed,
    workers() {
      const now = monotonicMs();
      return [...entries.values()].map(({ worker }) => worker).filter(({ life }) => now < life.goneAt);
    },
    select: (query) => (excluded(query) ? [] : build(query, monotonicMs()).instances),
    list(query) {
      if (excluded(query)) {
        return new Uint8Array();
      }
      const now = monotonicMs();
      const key = `${query.status}/${query.rank}/${query.minUpdatedAtMs}/${query.limit}`;
      const known = kept.get(key);
      if (known !== undefined && now < known.until) {
        return known.bytes;
      }
      const { instances, until } = build(query, now);
      const bytes = encodeInstances(instances);
      kept.delete(key);
      kept.set(key, { bytes, until });
      const oldest = kept.keys().next().value;
      if (kept.size > KEPT_LISTS_MAX && oldest !== undefined) {
        kept.delete(oldest);
      }
      return bytes;
    },
  };
  return view;
}
