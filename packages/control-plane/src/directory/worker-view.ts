import { create } from "@bufbuild/protobuf";
import { isOwnIdentity } from "@weightline/proto";
import { type Holding, HoldingState, Tier } from "@weightline/proto/common";
import { SourceStatus, WorkerMetadataSchema } from "@weightline/proto/p2p";
import type { NodeRecord, Worker } from "./directory.ts";

const STATUS: Readonly<Partial<Record<HoldingState, SourceStatus>>> = {
  [HoldingState.COMPLETE]: SourceStatus.READY,
  [HoldingState.FILLING]: SourceStatus.INITIALIZING,
  [HoldingState.DAMAGED]: SourceStatus.STALE,
};

/**
 * Those identities of a holding under which it is a worker. Only identities of our own (with a weightline.* parameter) are
 * shown from DRAM, so that no stock GPU client tries to READ memory that it cannot.
 */
export function shownIdentities(holding: Holding): Holding["identities"] {
  return STATUS[holding.state] === undefined
    ? []
    : holding.identities.filter(
        ({ identity }) => identity !== undefined && (holding.tier === Tier.VRAM || isOwnIdentity(identity)),
      );
}

/** A node's holdings as the contract's workers. */
export function workersOf(node: NodeRecord): Worker[] {
  return node.holdings.flatMap((holding) => {
    const status = STATUS[holding.state];
    if (status === undefined) {
      return [];
    }
    const accelerator = holding.tier === Tier.VRAM ? "cuda" : "cpu";
    return shownIdentities(holding).flatMap(({ identity, rank, sourceId }) => {
      if (identity === undefined) {
        return [];
      }
      const metadata = create(WorkerMetadataSchema, {
        workerRank: rank,
        status,
        updatedAt: BigInt(node.lastSeenMs),
        workerGrpcEndpoint: node.address,
        agentName: node.name,
        accelerator,
        sourcePayload: { case: "tensorSource", value: { tensors: [] } },
      });
      const { objectDigest } = holding;
      return [
        {
          sourceId,
          workerId: `${holding.holdingId}-${rank}`,
          rank,
          identity,
          metadata,
          status,
          updatedAtMs: node.lastSeenMs,
          sourceLoad: undefined,
          node: node.name,
          objectDigest,
        },
      ];
    });
  });
}
