import type { SourceIdentity, SourceStatus } from "@weightline/proto/p2p";
import type { WorkerQuery } from "./directory.ts";
import { decodeInstance, encodeInstance, encodeInstances, type ListedInstance } from "./instance-encoding.ts";
import { trainingStep } from "./training-step.ts";
import { type HeldWorker, type StockState, type StockWorker, statusNow } from "./worker.ts";
import { WorkerTable } from "./worker-table.ts";

/** Lists of one view that are kept encoded. */
const KEPT_LISTS_MAX = 8;
/** How long an encoded list with workers of nodes stands, in ms: their announces come all the time and change only times. */
const NODE_LIST_MS = 1000;
/** Rows of removed workers that are kept until a list is made. */
const REMOVED_MAX = 64;

/** A worker as `mxctl sources` shows it. */
export interface ShownWorker {
  workerId: string;
  rank: number;
  status: SourceStatus;
  accelerator: string;
  updatedAtMs: number;
  /** Undefined for a stock worker. */
  held: HeldWorker | undefined;
}

/** The workers of one source, in memory, ready to be listed. A worker id is a stock worker or a holding's, not both. */
export interface SourceView {
  readonly sourceId: string;
  readonly identity: SourceIdentity;
  readonly size: number;
  /** A holding's worker, gone or not. */
  held(workerId: string): HeldWorker | undefined;
  /** A stock worker, gone or not. */
  stock(workerId: string): StockState | undefined;
  /** The same with all that is listed of it. */
  published(workerId: string): StockWorker | undefined;
  /** The metadata that was put with a stock worker, a copy. */
  metadata(workerId: string): Uint8Array;
  /** Adds a worker, or puts it in the place of the one with its id. */
  putHeld(worker: HeldWorker): void;
  putStock(workerId: string, worker: StockWorker, metadata?: Uint8Array): void;
  /** A stock worker's life, status or load changed. */
  setStock(workerId: string, state: StockState): void;
  remove(workerId: string): void;
  /** All holdings' workers that are not gone, hidden ones too, in no order. */
  heldWorkers(): HeldWorker[];
  /** Ids of stock workers that are gone. */
  goneStock(): string[];
  /** All workers that are not gone or hidden, in no order. */
  shown(): ShownWorker[];
  shownCount(): number;
  /** What a query of this source lists, newest first; to be encoded before anything changes. */
  select(query: WorkerQuery): ListedInstance[];
  /** The same as an encoded ListSourcesResponse. */
  list(query: WorkerQuery): Uint8Array;
}

/** Newest first; equal times by id. */
export function newestFirst(a: ListedInstance, b: ListedInstance): number {
  return (
    b.table.updatedAtMs(b.row) - a.table.updatedAtMs(a.row) ||
    compareIds(a.table.ids[a.row] ?? "", b.table.ids[b.row] ?? "")
  );
}

function compareIds(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

const NO_METADATA = new Uint8Array();

/** The rows of a view: by worker id, and in the order of the last list, since what is nearly sorted sorts quickly. */
class Rows {
  readonly table = new WorkerTable();
  readonly byId = new Map<string, number>();
  #order: number[] = [];
  readonly #removed: number[] = [];

  take(workerId: string): number {
    const known = this.byId.get(workerId);
    if (known !== undefined) {
      return known;
    }
    const row = this.table.add(workerId);
    this.byId.set(workerId, row);
    this.#order.push(row);
    return row;
  }

  remove(workerId: string): boolean {
    const row = this.byId.get(workerId);
    if (row === undefined) {
      return false;
    }
    this.table.remove(row);
    this.byId.delete(workerId);
    this.#removed.push(row);
    if (this.#removed.length > REMOVED_MAX && this.#removed.length > this.byId.size) {
      this.#forgetRemoved();
    }
    return true;
  }

  /** All, in no order, with their lives as they are now. */
  current(): number[] {
    const { table } = this;
    if (this.#removed.length > 0) {
      this.#forgetRemoved();
    }
    for (const row of this.#order) {
      const held = table.held[row];
      if (held !== undefined) {
        table.setLife(row, held.node);
      }
    }
    return this.#order;
  }

  sorted(): number[] {
    const { table } = this;
    return this.current().sort(
      (a, b) => table.updatedAtMs(b) - table.updatedAtMs(a) || compareIds(table.ids[a] ?? "", table.ids[b] ?? ""),
    );
  }

  #forgetRemoved(): void {
    this.#order = this.#order.filter((row) => this.table.ids[row] !== "");
    for (const row of this.#removed.splice(0)) {
      this.table.reuse(row);
    }
  }
}

export function createSourceView(
  { sourceId, identity }: { sourceId: string; identity: SourceIdentity },
  monotonicMs: () => number,
): SourceView {
  const rows = new Rows();
  const { table, byId } = rows;
  const step = trainingStep(identity);
  const source = { sourceId, modelName: identity.modelName, trainingStep: step };
  const kept = new Map<string, { bytes: Uint8Array; until: number }>();

  const statusOf = (row: number, now: number) =>
    statusNow(table.status(row), { freshUntil: table.freshUntil(row) }, now);
  const isShown = (row: number, now: number) => table.held[row]?.hidden !== true && now < table.goneAt(row);

  /** What is wanted, and until when that stays so if nothing is told. */
  const build = (query: WorkerQuery, now: number): { instances: ListedInstance[]; until: number } => {
    let until = Number.POSITIVE_INFINITY;
    const instances: ListedInstance[] = [];
    const limit = query.limit ?? Number.POSITIVE_INFINITY;
    for (const row of rows.sorted()) {
      if (!isShown(row, now)) {
        continue;
      }
      const freshUntil = table.freshUntil(row);
      const goneAt = table.goneAt(row);
      until = Math.min(until, goneAt, freshUntil > now ? freshUntil : goneAt);
      if (table.held[row] !== undefined) {
        until = Math.min(until, now + NODE_LIST_MS);
      }
      if (
        (query.status === undefined || statusOf(row, now) === query.status) &&
        (query.rank === undefined || table.rank(row) === query.rank) &&
        (query.minUpdatedAtMs === undefined || table.updatedAtMs(row) >= query.minUpdatedAtMs) &&
        instances.length < limit
      ) {
        instances.push({ table, row });
      }
    }
    return { instances, until };
  };

  const excluded = ({ modelName, minTrainingStep }: WorkerQuery): boolean =>
    (modelName !== undefined && modelName !== identity.modelName) ||
    (minTrainingStep !== undefined && (step === undefined || step < minTrainingStep));

  const stockRow = (workerId: string): number | undefined => {
    const row = byId.get(workerId);
    return row === undefined || table.held[row] !== undefined ? undefined : row;
  };

  const view: SourceView = {
    sourceId,
    identity,
    get size() {
      return byId.size;
    },
    held(workerId) {
      const row = byId.get(workerId);
      return row === undefined ? undefined : table.held[row];
    },
    stock(workerId) {
      const row = stockRow(workerId);
      return row === undefined ? undefined : table.state(row);
    },
    published(workerId) {
      const row = stockRow(workerId);
      if (row === undefined) {
        return undefined;
      }
      const { accelerator, topology } = decodeInstance(table.instance(row));
      return { ...table.state(row), accelerator, topology };
    },
    metadata(workerId) {
      const row = stockRow(workerId);
      return row === undefined ? NO_METADATA : table.metadata(row);
    },
    putHeld(worker) {
      const parts = encodeInstance(source, { ...worker, topology: {} });
      const row = rows.take(worker.workerId);
      table.held[row] = worker;
      table.setState(row, { ...worker.node, rank: worker.rank, status: worker.status, load: undefined });
      table.setBytes(row, { ...parts, metadata: NO_METADATA });
      kept.clear();
    },
    putStock(workerId, { accelerator, topology, ...state }, metadata = NO_METADATA) {
      const parts = encodeInstance(source, { workerId, rank: state.rank, accelerator, topology });
      const row = rows.take(workerId);
      table.held[row] = undefined;
      table.setState(row, state);
      table.setBytes(row, { ...parts, metadata });
      kept.clear();
    },
    setStock(workerId, state) {
      const row = stockRow(workerId);
      if (row !== undefined) {
        table.setState(row, state);
        kept.clear();
      }
    },
    remove(workerId) {
      if (rows.remove(workerId)) {
        kept.clear();
      }
    },
    heldWorkers() {
      const now = monotonicMs();
      return rows.current().flatMap((row) => {
        const held = table.held[row];
        return held !== undefined && now < held.node.goneAt ? [held] : [];
      });
    },
    goneStock() {
      const now = monotonicMs();
      const gone = rows.current().filter((row) => table.held[row] === undefined && now >= table.goneAt(row));
      return gone.map((row) => table.ids[row] ?? "");
    },
    shown() {
      const now = monotonicMs();
      const shown = rows.current().filter((row) => isShown(row, now));
      return shown.map((row) => ({
        workerId: table.ids[row] ?? "",
        rank: table.rank(row),
        status: statusOf(row, now),
        accelerator: decodeInstance(table.instance(row)).accelerator,
        updatedAtMs: table.updatedAtMs(row),
        held: table.held[row],
      }));
    },
    shownCount() {
      const now = monotonicMs();
      return rows.current().reduce((count, row) => count + (isShown(row, now) ? 1 : 0), 0);
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
