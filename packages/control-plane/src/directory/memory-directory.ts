import { create } from "@bufbuild/protobuf";
import { compareUtf8 } from "@weightline/proto";
import { HoldingState, NodeState } from "@weightline/proto/common";
import {
  type AnnounceRequest,
  type AnnounceResponse,
  AnnounceResponseSchema,
  AnnounceVerdict,
  HolderSchema,
  NodeSchema,
  SourceSchema,
} from "@weightline/proto/node";
import { SourceStatus } from "@weightline/proto/p2p";
import type { Directory, NodeRecord, Worker, WorkerQuery } from "./directory.ts";
import { countRecords } from "./directory-size.ts";
import { namesNear } from "./near-names.ts";
import { workersOf } from "./worker-view.ts";

export interface MemoryDirectoryOptions {
  /** Ms after which a stock worker without a heartbeat is stale. */
  heartbeatTimeoutMs: number;
  /** Ms after which it is forgotten. */
  gcTimeoutMs: number;
  /** When agents are asked to announce again, in ms. */
  announceIntervalMs: number;
  clock?: Clock;
}

/** Lifetimes run on the monotonic clock; Unix time is only shown. */
export interface Clock {
  monotonicMs(): number;
  unixMs(): number;
}

const SYSTEM_CLOCK: Clock = { monotonicMs: () => performance.now(), unixMs: () => Date.now() };

/** How long a lost node is still shown. */
const LOST_SHOWN_MS = 10 * 60_000;

interface StockWorker {
  worker: Worker;
  /** Monotonic ms of the last publish or heartbeat: freshness counts from receipt, nodes' clocks differ. */
  heardAt: number;
  publishedAt: number;
}

/** A directory that lives and dies with its process: one machine, development, tests. */
export function createMemoryDirectory(options: MemoryDirectoryOptions): Directory {
  const clock = options.clock ?? SYSTEM_CLOCK;
  const nodes = new Map<string, NodeRecord>();
  /** source id -> worker id -> rank -> worker; plain maps take any name. */
  const stock = new Map<string, Map<string, Map<number, StockWorker>>>();

  const live = (record: NodeRecord) => record.expiresAt > clock.monotonicMs();

  const forget = () => {
    const now = clock.monotonicMs();
    for (const [name, record] of nodes) {
      if (now - record.expiresAt > LOST_SHOWN_MS) {
        nodes.delete(name);
      }
    }
    for (const [sourceId, workers] of stock) {
      for (const [workerId, ranks] of workers) {
        for (const [rank, entry] of ranks) {
          if (now - entry.heardAt > options.gcTimeoutMs) {
            ranks.delete(rank);
          }
        }
        if (ranks.size === 0) {
          workers.delete(workerId);
        }
      }
      if (workers.size === 0) {
        stock.delete(sourceId);
      }
    }
  };

  const answer = (verdict: AnnounceVerdict, more: { knownEpoch?: bigint; takenBy?: string } = {}): AnnounceResponse =>
    create(AnnounceResponseSchema, { verdict, nextAnnounceMs: options.announceIntervalMs, ...more });

  /** Why an announce must not be taken, if it must not. */
  const refusal = (message: AnnounceRequest, known: NodeRecord | undefined): AnnounceResponse | undefined => {
    if (known === undefined || known.bootId === message.bootId) {
      return known !== undefined && message.epoch < known.epoch
        ? answer(AnnounceVerdict.STALE, { knownEpoch: known.epoch })
        : undefined;
    }
    // The same store started again: its epoch decides. Another store under a live name is a second node.
    if (live(known) && known.storeId !== message.storeId) {
      return answer(AnnounceVerdict.NAME_TAKEN, { takenBy: known.address });
    }
    return message.epoch <= known.epoch ? answer(AnnounceVerdict.STALE, { knownEpoch: known.epoch }) : undefined;
  };

  const take = (message: AnnounceRequest, known: NodeRecord | undefined): AnnounceResponse => {
    const sameStart = known !== undefined && known.bootId === message.bootId && known.epoch === message.epoch;
    if (sameStart && message.sequence <= known.sequence) {
      return answer(AnnounceVerdict.ACCEPTED);
    }
    if (message.holdings === undefined && !(sameStart && known.holdingsRevision === message.holdingsRevision)) {
      return answer(AnnounceVerdict.RESEND);
    }
    for (const [name, other] of nodes) {
      if (name !== message.node && other.storeId === message.storeId && message.storeId !== "") {
        nodes.delete(name);
      }
    }
    nodes.set(message.node, {
      name: message.node,
      address: message.address,
      epoch: message.epoch,
      sequence: message.sequence,
      bootId: message.bootId,
      storeId: message.storeId,
      version: message.version,
      protection: message.protection,
      state: message.state,
      memory: message.memory,
      holdingsRevision: message.holdingsRevision,
      holdings: message.holdings?.holdings ?? known?.holdings ?? [],
      lastSeenMs: clock.unixMs(),
      expiresAt: clock.monotonicMs() + message.ttlMs,
    });
    return answer(AnnounceVerdict.ACCEPTED);
  };

  const stockWorkers = (sourceId: string | undefined): Worker[] => {
    const now = clock.monotonicMs();
    const sources = sourceId === undefined ? [...stock.values()] : [stock.get(sourceId) ?? new Map()];
    return sources.flatMap((workers: Map<string, Map<number, StockWorker>>) =>
      [...workers.values()].flatMap((ranks) => {
        // One worker id with several ranks lists the last published one.
        const last = [...ranks.values()].sort((a, b) => b.publishedAt - a.publishedAt)[0];
        if (last === undefined) {
          return [];
        }
        const stale = now - last.heardAt > options.heartbeatTimeoutMs && last.worker.status === SourceStatus.READY;
        return [stale ? { ...last.worker, status: SourceStatus.STALE } : last.worker];
      }),
    );
  };

  const allWorkers = (sourceId?: string): Worker[] => {
    const own = [...nodes.values()].filter(live).flatMap(workersOf);
    return [
      ...own.filter((worker) => sourceId === undefined || worker.sourceId === sourceId),
      ...stockWorkers(sourceId),
    ];
  };

  const wanted = (worker: Worker, query: WorkerQuery): boolean =>
    (query.status === undefined || worker.status === query.status) &&
    (query.modelName === undefined || worker.identity.modelName === query.modelName) &&
    (query.rank === undefined || worker.rank === query.rank) &&
    (query.minUpdatedAtMs === undefined || worker.updatedAtMs >= query.minUpdatedAtMs);

  return {
    backend: "memory",
    async announce(message) {
      forget();
      const known = nodes.get(message.node);
      return refusal(message, known) ?? take(message, known);
    },
    async leave(node, epoch, bootId) {
      const known = nodes.get(node);
      if (known !== undefined && known.epoch === epoch && known.bootId === bootId) {
        nodes.delete(node);
      }
    },
    async lookup(sourceId, rank) {
      const holders = [...nodes.values()]
        .filter((record) => live(record) && record.state !== NodeState.DRAINING)
        .flatMap((record) =>
          record.holdings
            .filter(
              ({ identities, state }) =>
                (state === HoldingState.COMPLETE || state === HoldingState.FILLING) &&
                identities.some((named) => named.sourceId === sourceId && named.rank === rank),
            )
            .map((holding) =>
              create(HolderSchema, { node: record.name, address: record.address, epoch: record.epoch, holding }),
            ),
        );
      return holders.sort(
        (a, b) =>
          Number(b.holding?.state === HoldingState.COMPLETE) - Number(a.holding?.state === HoldingState.COMPLETE) ||
          compareUtf8(a.node, b.node),
      );
    },
    async near(modelName) {
      const held = [...nodes.values()]
        .filter(live)
        .flatMap(({ holdings }) => holdings.flatMap(({ identities }) => identities));
      return namesNear(
        modelName,
        held.flatMap(({ identity, rank }) => (identity === undefined ? [] : [{ identity, rank }])),
      );
    },
    async nodes() {
      forget();
      return [...nodes.values()]
        .sort((a, b) => compareUtf8(a.name, b.name))
        .map((record) =>
          create(NodeSchema, {
            name: record.name,
            state: live(record) ? record.state : NodeState.LOST,
            epoch: record.epoch,
            address: record.address,
            lastSeenMs: BigInt(record.lastSeenMs),
            holdings: record.holdings,
            version: record.version,
            protection: record.protection,
            ...(record.memory === undefined ? {} : { memory: record.memory }),
          }),
        );
    },
    async publish({ sourceId, workerId, identity, metadata }) {
      forget();
      const workers = stock.get(sourceId) ?? new Map<string, Map<number, StockWorker>>();
      const ranks = workers.get(workerId) ?? new Map<number, StockWorker>();
      const before = ranks.get(metadata.workerRank);
      const now = clock.monotonicMs();
      // What is live stays live: a second publish must not hide it.
      const alive = before !== undefined && now - before.heardAt <= options.heartbeatTimeoutMs;
      const status = alive
        ? before.worker.status
        : metadata.status === SourceStatus.READY
          ? SourceStatus.INITIALIZING
          : metadata.status;
      const worker: Worker = {
        sourceId,
        workerId,
        rank: metadata.workerRank,
        identity,
        metadata,
        status,
        updatedAtMs: clock.unixMs(),
        sourceLoad: alive ? before.worker.sourceLoad : undefined,
        node: "",
        objectDigest: new Uint8Array(),
      };
      ranks.set(metadata.workerRank, { worker, heardAt: now, publishedAt: now });
      workers.set(workerId, ranks);
      stock.set(sourceId, workers);
    },
    async updateStatus({ sourceId, workerId, rank, status, sourceLoad }) {
      const entry = stock.get(sourceId)?.get(workerId)?.get(rank);
      if (entry === undefined) {
        return false;
      }
      entry.heardAt = clock.monotonicMs();
      entry.worker = { ...entry.worker, status, sourceLoad, updatedAtMs: clock.unixMs() };
      return true;
    },
    async workers(query) {
      forget();
      return allWorkers(query.sourceId)
        .filter((worker) => wanted(worker, query))
        .sort((a, b) => b.updatedAtMs - a.updatedAtMs || compareUtf8(a.workerId, b.workerId));
    },
    async worker(sourceId, workerId) {
      const ranks = stock.get(sourceId)?.get(workerId);
      const lowest =
        ranks === undefined ? undefined : [...ranks.values()].sort((a, b) => a.worker.rank - b.worker.rank)[0];
      return lowest?.worker ?? allWorkers(sourceId).find((worker) => worker.workerId === workerId);
    },
    async sources(modelName) {
      forget();
      const groups = Map.groupBy(
        allWorkers().filter(({ identity }) => modelName === "" || identity.modelName === modelName),
        ({ sourceId }) => sourceId,
      );
      return [...groups]
        .sort(([a], [b]) => compareUtf8(a, b))
        .map(([sourceId, workers]) =>
          create(SourceSchema, {
            sourceId,
            modelName: workers[0]?.identity.modelName ?? "",
            revision: workers[0]?.identity.revision ?? "",
            workers: workers.map(({ workerId, rank, status, node, metadata, updatedAtMs, objectDigest }) => ({
              workerId,
              rank,
              status,
              node,
              accelerator: metadata.accelerator,
              updatedAt: BigInt(updatedAtMs),
              objectDigest,
            })),
          }),
        );
    },
    async size() {
      forget();
      return countRecords(
        nodes.values(),
        live,
        [...stock].map(([sourceId, workers]) => [sourceId, workers.size]),
      );
    },
    health: async () => undefined,
    close: async () => undefined,
  };
}
