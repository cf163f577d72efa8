import type { Holding, NodeState } from "@weightline/proto/common";
import { SourceStatus } from "@weightline/proto/p2p";

/** What keeps a worker alive: its own heartbeats, or its node's announces, which all workers of the node share. */
export interface Life {
  /** Unix ms of the directory's clock. */
  updatedAtMs: number;
  /** Monotonic ms until which a READY worker is READY; afterwards it counts as STALE. */
  freshUntil: number;
  /** Monotonic ms after which the worker is listed no more. */
  goneAt: number;
}

/** A node as its workers see it; its life is theirs. */
export interface NodeLife extends Life {
  readonly name: string;
  address: string;
  epoch: bigint;
  state: NodeState;
}

/** A worker that is a view of an agent's holding. Its node's life changes without a word to who keeps it. */
export interface HeldWorker {
  workerId: string;
  rank: number;
  status: SourceStatus;
  accelerator: string;
  /** True for what only our own agents may be told of. */
  hidden: boolean;
  node: NodeLife;
  holding: () => Holding | undefined;
  /** SHA-256; empty while the holding fills. */
  objectDigest: Uint8Array;
}

/** What changes of a worker that a stock client published. */
export interface StockState extends Life {
  rank: number;
  status: SourceStatus;
  /** From 0 to 1. */
  load: number | undefined;
}

/** All that is listed of such a worker. */
export interface StockWorker extends StockState {
  accelerator: string;
  topology: Readonly<Record<string, string>>;
}

/** The status that a worker has now: READY ends with its heartbeats. */
export function statusNow(status: SourceStatus, life: Pick<Life, "freshUntil">, nowMs: number): SourceStatus {
  return status === SourceStatus.READY && nowMs >= life.freshUntil ? SourceStatus.STALE : status;
}
