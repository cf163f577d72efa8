import { randomBytes } from "node:crypto";
import { compareUtf8 } from "@weightline/proto";
import type { AnnounceRequest, Source } from "@weightline/proto/node";
import { SourceStatus } from "@weightline/proto/p2p";
import { createBoundedLog, type Logger } from "@weightline/runtime";
import { announceReply, type Judgement } from "../announce-verdict.ts";
import { type Clock, type Directory, LOST_SHOWN_MS, SYSTEM_CLOCK, type WorkerQuery } from "../directory.ts";
import type { DirectoryObserver } from "../directory-observer.ts";
import { heldNames, holdersIn, metadataOfHolding, sourceMessage, workersOfHolding } from "../directory-worker.ts";
import { encodeInstances } from "../instance-encoding.ts";
import { joinedCalls } from "../joined-calls.ts";
import { namesNear } from "../near-names.ts";
import { withStatus } from "../published-worker.ts";
import { newestFirst, type SourceView } from "../source-view.ts";
import { createNodeMirror } from "./node-mirror.ts";
import { readNode, writeHoldings } from "./node-records.ts";
import type { RedisAddress } from "./redis-address.ts";
import { createRedisConnection } from "./redis-connection.ts";
import {
  aboutWorker,
  readIdentity,
  readWorkerRecord,
  statusName,
  workerField,
  writeHoldingRecord,
  writeIdentity,
} from "./redis-records.ts";
import { createSourceCache } from "./source-cache.ts";

export interface RedisDirectoryOptions {
  address: RedisAddress;
  /** PEM of the authority of Redis's certificate; undefined: the system's. */
  ca: string | undefined;
  /** How long one command may take, in ms. */
  timeoutMs: number;
  /** Ms after which a stock worker without a heartbeat is stale. */
  heartbeatTimeoutMs: number;
  /** Ms after which it is forgotten. */
  gcTimeoutMs: number;
  /** The least lifetime of a key, in ms. */
  statusTtlMs: number;
  /** When agents are asked to announce again, in ms. */
  announceIntervalMs: number;
  /** How often what is over is looked for in a source that is written to, in ms. */
  reaperIntervalMs: number;
  observer: DirectoryObserver;
  log: Logger;
  clock?: Clock;
}

/**
 * A write that was received so long before the newest one of its worker is late, in ms: replicas' estimates of Redis's clock
 * differ by less.
 */
export const LATE_TOLERANCE_MS = 250;
/** How often the lives of nodes are read when nobody asks, in ms: what is to be read stays small. */
const NODES_INTERVAL_MS = 1000;
/** Sources that are brought up to date at once where all are asked for. */
const SOURCES_AT_ONCE = 100;

/** The directory of several control planes: each answers anything, any may go, and Redis may forget. */
export function createRedisDirectory(options: RedisDirectoryOptions): Directory {
  const clock = options.clock ?? SYSTEM_CLOCK;
  const bounded = createBoundedLog(options.log);
  const connection = createRedisConnection({ ...options, clock });
  const nodes = createNodeMirror(clock);
  const cache = createSourceCache({
    ...options,
    connection,
    nodes,
    clock,
    damaged: (sourceId) =>
      bounded(
        "warn",
        { event: "record-damaged", source_id: sourceId },
        "a source's record in Redis is none; it counts as absent",
      ),
  });
  const { prefix } = connection;
  // Half of a lifetime may be over when it is renewed.
  const recordTtlMs = 2 * Math.max(options.gcTimeoutMs, options.statusTtlMs);
  // A source that begins is named so that no other life of it has the same name.
  const replica = randomBytes(8).toString("hex");
  let begun = 0;
  const generation = () => `${replica}-${begun++}`;
  const receivedAt = () => Math.round(connection.clock.at(clock.monotonicMs()));

  const timer = setInterval(() => {
    cache.syncNodes().catch(() => undefined);
  }, NODES_INTERVAL_MS).unref();

  /** All sources, each as it is now. */
  const readAll = async (): Promise<SourceView[]> => {
    const ids = await connection.members(`${prefix}sources`);
    const views: SourceView[] = [];
    for (let i = 0; i < ids.length; i += SOURCES_AT_ONCE) {
      const page = ids.slice(i, i + SOURCES_AT_ONCE);
      const synced = await Promise.all(page.map(cache.sync));
      views.push(...synced.filter((view) => view !== undefined));
      const ended = page.filter((_, j) => synced[j] === undefined);
      await Promise.all(ended.map((id) => connection.run("forgetSource", [id], { sourceIds: [id] })));
    }
    return views;
  };
  const joinedAll = joinedCalls(readAll);
  const allViews = () => joinedAll("");

  const listAll = async (query: WorkerQuery): Promise<Uint8Array> => {
    const { limit, ...filters } = query;
    const all = (await allViews()).flatMap((view) => view.select(filters)).sort(newestFirst);
    return encodeInstances(limit === undefined ? all : all.slice(0, limit));
  };

  return {
    backend: "redis",
    async announce(message) {
      const entries = (message.holdings?.holdings ?? []).flatMap((holding) =>
        workersOfHolding(holding).flatMap((worker) => [
          worker.sourceId,
          workerField(worker.workerId),
          writeHoldingRecord(message.node, worker, holding),
          writeIdentity(worker.identity),
        ]),
      );
      const args = [
        message.node,
        String(message.epoch),
        String(message.sequence),
        message.bootId,
        message.storeId,
        message.address,
        message.state,
        String(message.holdingsRevision),
        message.ttlMs,
        LOST_SHOWN_MS,
        recordTtlMs,
        options.gcTimeoutMs,
        options.reaperIntervalMs,
        aboutNode(message),
        message.holdings === undefined ? "" : generation(),
        message.holdings === undefined ? "" : writeHoldings(message.holdings.holdings),
        ...entries,
      ];
      const sourceIds = entries.filter((_, i) => i % 4 === 0);
      const reply = await connection.run("announce", args, { sourceIds, node: message.node, storeId: message.storeId });
      return announceReply(judgementOf(String(reply[1]), String(reply[2])), options.announceIntervalMs);
    },
    async leave(node, epoch, bootId) {
      await connection.run("leave", [node, String(epoch), bootId, recordTtlMs], { node });
    },
    async lookup(sourceId, rank) {
      const view = await cache.sync(sourceId);
      return view === undefined ? [] : holdersIn(view, rank);
    },
    near: async (modelName) => namesNear(modelName, (await allViews()).flatMap(heldNames)),
    async nodes() {
      const names = (await connection.members(`${prefix}nodes`)).sort(compareUtf8);
      await cache.syncNodes();
      const records = await connection.hashes(names.map((name) => `${prefix}node:${name}`));
      const redisMs = connection.clock.at(clock.monotonicMs());
      return names.flatMap((name, i) => readNode(name, records[i] ?? {}, redisMs) ?? []);
    },
    async publish({ sourceId, workerId, identity, worker: { summary, bytes } }) {
      const { workerRank, accelerator, topology } = summary;
      const first = summary.status === SourceStatus.READY ? SourceStatus.INITIALIZING : summary.status;
      const field = workerField(workerId);
      const args = [
        sourceId,
        field,
        writeIdentity(identity),
        generation(),
        workerRank,
        statusName(first),
        accelerator,
        Object.keys(topology).length === 0 ? "" : JSON.stringify(topology),
        receivedAt(),
        LATE_TOLERANCE_MS,
        options.heartbeatTimeoutMs,
        options.gcTimeoutMs,
        options.reaperIntervalMs,
        recordTtlMs,
        Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength),
        aboutWorker(summary, bytes.length),
      ];
      const reply = await connection.run("publish", args, { sourceIds: [sourceId], field });
      return reply[1] === "superseded" || reply[1] === "taken" ? reply[1] : "stored";
    },
    async updateStatus({ sourceId, workerId, rank, status, sourceLoad }) {
      const field = workerField(workerId);
      const args = [
        sourceId,
        field,
        rank,
        statusName(status),
        sourceLoad ?? "",
        receivedAt(),
        LATE_TOLERANCE_MS,
        options.gcTimeoutMs,
        options.reaperIntervalMs,
        recordTtlMs,
      ];
      const reply = await connection.run("heartbeat", args, { sourceIds: [sourceId], field });
      return reply[1] === "unknown" || reply[1] === "superseded" ? reply[1] : "stored";
    },
    async list(query) {
      if (query.sourceId === undefined) {
        return listAll(query);
      }
      return (await cache.sync(query.sourceId))?.list(query) ?? new Uint8Array();
    },
    async worker(sourceId, workerId) {
      const field = workerField(workerId);
      const reply = await connection.run("worker", [sourceId, field], { sourceIds: [sourceId], field }, "bytes");
      return foundWorker(reply as (Buffer | null)[], options);
    },
    async sources(modelName) {
      const views = (await allViews()).filter(({ identity }) => modelName === "" || identity.modelName === modelName);
      return views
        .sort((a, b) => compareUtf8(a.sourceId, b.sourceId))
        .flatMap((view): Source[] | Source => sourceMessage(view) ?? []);
    },
    async size() {
      const ids = await connection.members(`${prefix}sources`);
      await cache.syncNodes();
      const fields = await connection.counts(ids.map((id) => `${prefix}source:${id}`));
      const counts = fields.filter((count) => count > 0).map((count) => Math.max(0, count - RECORD_FIELDS));
      return { nodes: nodes.counts(), sources: counts.length, workers: counts.reduce((sum, count) => sum + count, 0) };
    },
    ready: () => connection.firstReady,
    health: () => connection.checkWritable(),
    async close() {
      clearInterval(timer);
      connection.close();
    },
  };
}

/** Fields of a source's record that are no worker: see common.lua. */
const RECORD_FIELDS = 5;

function aboutNode({ version, protection, memory }: AnnounceRequest): string {
  return JSON.stringify({
    version,
    protection,
    ...(memory === undefined ? {} : { memory_limit: String(memory.limit), memory_used: String(memory.used) }),
  });
}

function judgementOf(verdict: string, told: string): Judgement {
  switch (verdict) {
    case "stale":
      return { verdict, knownEpoch: BigInt(told) };
    case "name-taken":
      return { verdict, takenBy: told };
    case "resend":
    case "repeated":
      return { verdict };
    default:
      return { verdict: "take" };
  }
}

/** What worker.lua tells of one worker. */
function foundWorker(
  [now, attributes, record, first, second, third]: (Buffer | null | undefined)[],
  { heartbeatTimeoutMs, gcTimeoutMs }: RedisDirectoryOptions,
) {
  const identity = attributes && readIdentity(attributes.toString());
  const known = record && readWorkerRecord(record.toString());
  const redisMs = Number(String(now));
  if (!identity || !known) {
    return undefined;
  }
  if ("holding" in known) {
    const { holding } = known;
    const live = first && second && third && redisMs < Number(third.toString());
    const node = { name: holding.node, address: String(first ?? ""), updatedAtMs: Number(String(second ?? "0")) };
    return live && !holding.hidden ? { identity, metadata: metadataOfHolding({ ...holding, node }) } : undefined;
  }
  const rank = known.ranks.find((other) => String(other.rank) === first?.toString());
  if (rank === undefined || !second || redisMs - rank.updatedAtMs >= gcTimeoutMs) {
    return undefined;
  }
  const stale = rank.status === SourceStatus.READY && redisMs - rank.updatedAtMs >= heartbeatTimeoutMs;
  return { identity, metadata: withStatus(second, stale ? SourceStatus.STALE : rank.status, rank.updatedAtMs) };
}
