import type { AnnounceRequest, AnnounceResponse, Holder, Node, Source } from "@weightline/proto/node";
import type { SourceIdentity, SourceStatus } from "@weightline/proto/p2p";
import type { PublishedWorker } from "./published-worker.ts";

/** What a stock client publishes. */
export interface Publication {
  sourceId: string;
  workerId: string;
  identity: SourceIdentity;
  worker: PublishedWorker;
}

/**
 * How a publish ended: `superseded` when a newer one of this worker was stored before it, `taken` when its id is that of a
 * live node's holding.
 */
export type PublishOutcome = "stored" | "superseded" | "taken";

export interface StatusUpdate {
  sourceId: string;
  workerId: string;
  rank: number;
  status: SourceStatus;
  /** From 0 to 1; undefined clears it. */
  sourceLoad: number | undefined;
}

/**
 * How a heartbeat ended: `unknown` for a worker or rank that is not there, `superseded` when a newer publish or heartbeat
 * of this worker was stored before it.
 */
export type UpdateOutcome = "stored" | "superseded" | "unknown";

/** Which workers are wanted; absent fields do not filter. */
export interface WorkerQuery {
  sourceId?: string;
  status?: SourceStatus;
  /** Exact, case-sensitive. */
  modelName?: string;
  rank?: number;
  /** Unix ms of the directory's clock. */
  minUpdatedAtMs?: number;
  minTrainingStep?: bigint;
  /** At most so many, after all other filters. */
  limit?: number;
}

/** One worker with all that is known of it. */
export interface FoundWorker {
  identity: SourceIdentity;
  /** An encoded model_express.p2p.WorkerMetadata. */
  metadata: Uint8Array;
}

/** How much a directory holds, by its records: some of them may be over and not yet removed. */
export interface DirectorySize {
  nodes: { ready: number; draining: number; lost: number };
  sources: number;
  workers: number;
}

/**
 * Nodes, their holdings, and workers: pointers only. Every implementation passes test/directory-conformance.ts. Calls end
 * by their deadline: a backend that does not answer rejects with Unavailable. Nothing is kept that agents and clients do
 * not tell again. A worker of the contract is one that a stock client published, or a view of an agent's holding.
 */
export interface Directory {
  /** "memory", "redis", "kubernetes": for metrics and logs. */
  readonly backend: string;
  /**
   * Takes one node's announce, fenced by node, epoch and sequence: a late or repeated one changes nothing. What another live
   * node has announced under the same holding id stays that node's.
   */
  announce(announce: AnnounceRequest): Promise<AnnounceResponse>;
  /** A clean stop: forgets the node if this epoch and boot id are still its own. */
  leave(node: string, epoch: bigint, bootId: string): Promise<void>;
  /** At most LOOKUP_HOLDERS_MAX live holders that do not drain, complete ones first. */
  lookup(sourceId: string, rank: number): Promise<Holder[]>;
  /** Names close to one that nobody holds: "m (revision r, rank 0)". */
  near(modelName: string): Promise<string[]>;
  /** All nodes, lost ones included until they are forgotten. By name. */
  nodes(): Promise<Node[]>;
  /** Stores a worker. A live worker that is published again stays listed as it was. */
  publish(publication: Publication): Promise<PublishOutcome>;
  updateStatus(update: StatusUpdate): Promise<UpdateOutcome>;
  /** An encoded ListSourcesResponse: newest first; workers that are not fresh are not READY. */
  list(query: WorkerQuery): Promise<Uint8Array>;
  /** The worker's lowest rank. */
  worker(sourceId: string, workerId: string): Promise<FoundWorker | undefined>;
  /** For mxctl sources. Empty name: all. */
  sources(modelName: string): Promise<Source[]>;
  size(): Promise<DirectorySize>;
  /** Resolves once the backend has answered, or could not for a while: a start waits so long and no longer. */
  ready(): Promise<void>;
  /** Rejects when the backend does not answer, or takes no writes. */
  health(): Promise<void>;
  close(): Promise<void>;
}

/** Holders that one lookup names: a caller tries a few, and 10,000 nodes may hold one model. */
export const LOOKUP_HOLDERS_MAX = 64;

/** Lifetimes run on the monotonic clock; Unix time is only shown. */
export interface Clock {
  monotonicMs(): number;
  unixMs(): number;
}

export const SYSTEM_CLOCK: Clock = { monotonicMs: () => performance.now(), unixMs: () => Date.now() };

/** How long a lost node is still shown, in ms. */
export const LOST_SHOWN_MS = 10 * 60_000;
