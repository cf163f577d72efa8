import type { SourceIdentity } from "@weightline/proto/p2p";
import type { Clock } from "../directory.ts";
import { joinedCalls } from "../joined-calls.ts";
import { createSourceView, type SourceView } from "../source-view.ts";
import type { Life } from "../worker.ts";
import type { NodeMirror } from "./node-mirror.ts";
import type { RedisConnection, ScriptReply } from "./redis-connection.ts";
import { readIdentity, readTopology, readWorkerRecord, workerOfField } from "./redis-records.ts";

/** The sources that were asked for, each brought up to date with every ask. */
export interface SourceCache {
  /** The source as Redis has it now; undefined when there is none. */
  sync(sourceId: string): Promise<SourceView | undefined>;
  /** Brings the nodes' lives up to date. */
  syncNodes(): Promise<void>;
  /** Everything may have changed: all is read again. */
  reset(): void;
}

export interface SourceCacheOptions {
  connection: RedisConnection;
  nodes: NodeMirror;
  clock: Clock;
  heartbeatTimeoutMs: number;
  gcTimeoutMs: number;
  /** Told of a source whose record is no record, which is then treated as absent. */
  damaged: (sourceId: string) => void;
}

/** Workers of all cached sources together; beyond, sources that were not asked for longest are dropped. */
export const CACHED_WORKERS_MAX = 250_000;
/** Names of nodes that are remembered; beyond, all is read again. */
const CACHED_NODES_MAX = 250_000;
/** Changes that are read one by one; more are read as a whole. */
const DELTA_MAX = 1000;

interface Cached {
  view: SourceView;
  /** Tells this life of the source from one before a flush. */
  generation: string;
  version: string;
}

/** Pairs of an HGETALL. */
function* pairs(flat: (string | null)[]): Generator<[string, string]> {
  for (let i = 0; i + 1 < flat.length; i += 2) {
    yield [flat[i] ?? "", flat[i + 1] ?? ""];
  }
}

export function createSourceCache(options: SourceCacheOptions): SourceCache {
  const { connection, nodes, clock } = options;
  /** In the order of their last use. */
  const cached = new Map<string, Cached>();
  let readOver = connection.generation;
  let resets = 0;

  /** A stock worker's life from its last heartbeat, by Redis's clock; one that is known already keeps what was seen then. */
  const stockLife = (updatedAtMs: number, redisMs: number, known: Life | undefined): Life => {
    if (known?.updatedAtMs === updatedAtMs) {
      return { updatedAtMs, freshUntil: known.freshUntil, goneAt: known.goneAt };
    }
    const heardAt = clock.monotonicMs() - Math.max(0, redisMs - updatedAtMs);
    return { updatedAtMs, freshUntil: heardAt + options.heartbeatTimeoutMs, goneAt: heardAt + options.gcTimeoutMs };
  };

  const applyRecord = (
    view: SourceView,
    field: string,
    text: string | null,
    topology: string | null,
    redisMs: number,
  ) => {
    const workerId = workerOfField(field);
    if (workerId === undefined) {
      return;
    }
    const record = text === null ? undefined : readWorkerRecord(text);
    if (record !== undefined && "holding" in record) {
      const { node, ...fields } = record.holding;
      view.putHeld({ ...fields, workerId, node: nodes.lifeOf(node) });
      return;
    }
    // One worker id with several ranks lists the last published one.
    const last = record?.ranks.at(-1);
    if (last === undefined) {
      view.remove(workerId);
      return;
    }
    view.putStock(workerId, {
      ...last,
      ...stockLife(last.updatedAtMs, redisMs, view.stock(workerId)),
      topology: readTopology(topology),
    });
  };

  const whole = (sourceId: string, part: ScriptReply[], redisMs: number): Cached | undefined => {
    const [, version, generation, attributes, records, topologies] = part as [
      string,
      string,
      string,
      string,
      string[],
      string[],
    ];
    const identity: SourceIdentity | undefined = readIdentity(attributes);
    if (identity === undefined) {
      options.damaged(sourceId);
      return undefined;
    }
    const view = createSourceView({ sourceId, identity }, clock.monotonicMs);
    const topologyOf = new Map(pairs(topologies));
    for (const [field, text] of pairs(records)) {
      applyRecord(view, field, text, topologyOf.get(field) ?? null, redisMs);
    }
    return { view, generation, version };
  };

  const delta = (known: Cached, part: ScriptReply[], redisMs: number): Cached => {
    const [, version, fields, records, topologies] = part as [string, string, string[], string[], string[]];
    for (const [i, field] of fields.entries()) {
      applyRecord(known.view, field, records[i] ?? null, topologies[i] ?? null, redisMs);
    }
    return { ...known, version };
  };

  /** Drops the sources that were not asked for longest, while there are too many workers. */
  const bound = () => {
    let workers = 0;
    for (const [sourceId, { view }] of [...cached].reverse()) {
      workers += view.size;
      if (workers > CACHED_WORKERS_MAX && cached.size > 1) {
        cached.delete(sourceId);
      }
    }
  };

  const reset = () => {
    resets += 1;
    cached.clear();
    nodes.reset();
  };

  const read = async (sourceId: string): Promise<SourceView | undefined> => {
    if (readOver !== connection.generation || nodes.size > CACHED_NODES_MAX) {
      // Over a new connection Redis may be another, which lost some of what this one knows.
      readOver = connection.generation;
      reset();
    }
    const resetsBefore = resets;
    const known = cached.get(sourceId);
    const args = [sourceId, known?.generation ?? "", known?.version ?? "0", DELTA_MAX, nodes.version];
    const [now, source, told] = (await connection.run("sync", args, { sourceIds: [sourceId] })) as [
      string,
      ScriptReply[],
      [string, string[][]],
    ];
    if (readOver !== connection.generation || resetsBefore !== resets) {
      // What this tells is the difference to what is forgotten by now.
      return read(sourceId);
    }
    const redisMs = Number(now);
    nodes.apply(told[0], told[1], redisMs);
    const kind = source[0];
    const next =
      kind === "whole"
        ? whole(sourceId, source, redisMs)
        : kind === "delta" && known !== undefined
          ? delta(known, source, redisMs)
          : kind === "same"
            ? known
            : undefined;
    cached.delete(sourceId);
    if (next !== undefined) {
      cached.set(sourceId, next);
      if (kind === "whole") {
        bound();
      }
    }
    return next?.view;
  };

  const joined = joinedCalls(read);
  return {
    sync: joined,
    async syncNodes() {
      await joined("");
    },
    reset,
  };
}
