import type { Holding, Memory, NodeState } from "@weightline/proto/common";
import type { AnnounceRequest, AnnounceResponse, Holder, Node, Source } from "@weightline/proto/node";
import type { SourceIdentity, SourceStatus, WorkerMetadata } from "@weightline/proto/p2p";

/** A worker as the contract lists it: published by a stock client, or a view of an agent's holding. */
export interface Worker {
  sourceId: string;
  workerId: string;
  rank: number;
  identity: SourceIdentity;
  metadata: WorkerMetadata;
  status: SourceStatus;
  /** Unix ms. */
  updatedAtMs: number;
  /** Load from 0 to 1; undefined when the last heartbeat told none. */
  sourceLoad: number | undefined;
  /** Name of the node for an agent's; "" for a stock worker. */
  node: string;
  objectDigest: Uint8Array;
}

/** What a stock client publishes. */
export interface Publication {
  sourceId: string;
  workerId: string;
  identity: SourceIdentity;
  metadata: WorkerMetadata;
}

export interface StatusUpdate {
  sourceId: string;
  workerId: string;
  rank: number;
  status: SourceStatus;
  sourceLoad: number | undefined;
}

/** Which workers are wanted; absent fields do not filter. */
export interface WorkerQuery {
  sourceId?: string;
  status?: SourceStatus;
  modelName?: string;
  rank?: number;
  minUpdatedAtMs?: number;
}

/**
 * Nodes, their holdings, and workers: pointers only. Every implementation passes test/directory-conformance.ts. Calls end
 * by their deadline: a backend that does not answer rejects with Unavailable. Nothing is kept that agents do not announce
 * again.
 */
export interface Directory {
  /** "memory", "redis", "kubernetes": for metrics and logs. */
  readonly backend: string;
  /** Takes one node's announce, fenced by node, epoch and sequence: a late or repeated one changes nothing. */
  announce(announce: AnnounceRequest): Promise<AnnounceResponse>;
  /** A clean stop: forgets the node if this epoch and boot id are still its own. */
  leave(node: string, epoch: bigint, bootId: string): Promise<void>;
  /** Live holders that do not drain, complete ones first. */
  lookup(sourceId: string, rank: number): Promise<Holder[]>;
  /** Names close to one that nobody holds: "m (revision r, rank 0)". */
  near(modelName: string): Promise<string[]>;
  /** All nodes, lost ones included until they are forgotten. By name. */
  nodes(): Promise<Node[]>;
  /** Stores a worker. A live worker that is published again stays listed as it was. */
  publish(publication: Publication): Promise<void>;
  /** False for a worker or rank that is not known. */
  updateStatus(update: StatusUpdate): Promise<boolean>;
  /** Newest first. Workers that are not fresh are not READY. */
  workers(query: WorkerQuery): Promise<Worker[]>;
  /** The worker's lowest rank. */
  worker(sourceId: string, workerId: string): Promise<Worker | undefined>;
  /** For mxctl sources. */
  sources(modelName: string): Promise<Source[]>;
  /** How much it holds, where that can be known without reading all of it. */
  size?(): Promise<DirectorySize>;
  /** Rejects when the backend does not answer. */
  health(): Promise<void>;
  close(): Promise<void>;
}

/** How much a directory holds. */
export interface DirectorySize {
  nodes: { ready: number; draining: number; lost: number };
  /** Source ids that have a worker. */
  sources: number;
  /** As `workers({})` would list them. */
  workers: number;
}

/** A node's announce as a directory keeps it. */
export interface NodeRecord {
  name: string;
  address: string;
  epoch: bigint;
  sequence: bigint;
  bootId: string;
  storeId: string;
  version: string;
  protection: string;
  state: NodeState;
  memory: Memory | undefined;
  holdingsRevision: bigint;
  holdings: Holding[];
  /** Unix ms of the directory's clock, for people. */
  lastSeenMs: number;
  /** Monotonic ms after which the node is lost. */
  expiresAt: number;
}
