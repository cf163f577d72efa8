import { create, toBinary } from "@bufbuild/protobuf";
import { compareUtf8, isOwnIdentity } from "@weightline/proto";
import { type Holding, HoldingState, type IdentityRank, NodeState, Tier } from "@weightline/proto/common";
import { type Holder, HolderSchema, type Source, SourceSchema } from "@weightline/proto/node";
import { type SourceIdentity, SourceStatus, WorkerMetadataSchema } from "@weightline/proto/p2p";
import { LOOKUP_HOLDERS_MAX } from "./directory.ts";
import type { SourceView } from "./source-view.ts";
import type { NodeLife } from "./worker.ts";

const STATUS: Readonly<Partial<Record<HoldingState, SourceStatus>>> = {
  [HoldingState.COMPLETE]: SourceStatus.READY,
  [HoldingState.FILLING]: SourceStatus.INITIALIZING,
  [HoldingState.DAMAGED]: SourceStatus.STALE,
};

/** A holding under one of its names, as a worker of that source. */
export interface HoldingWorker {
  sourceId: string;
  identity: SourceIdentity;
  workerId: string;
  rank: number;
  status: SourceStatus;
  accelerator: string;
  hidden: boolean;
}

/**
 * A holding as the contract's workers, one for each name. Only identities of our own (with a weightline.* parameter) are
 * shown from DRAM, so that no stock GPU client tries to READ memory that it cannot.
 */
export function workersOfHolding(holding: Holding): HoldingWorker[] {
  const status = STATUS[holding.state];
  if (status === undefined) {
    return [];
  }
  const inVram = holding.tier === Tier.VRAM;
  return holding.identities.flatMap(({ identity, rank, sourceId }: IdentityRank) =>
    identity === undefined
      ? []
      : [
          {
            sourceId,
            identity,
            workerId: `${holding.holdingId}-${rank}`,
            rank,
            status,
            accelerator: inVram ? "cuda" : "cpu",
            hidden: !inVram && !isOwnIdentity(identity),
          },
        ],
  );
}

/** The encoded WorkerMetadata of a holding's worker. */
export function metadataOfHolding(worker: {
  rank: number;
  status: SourceStatus;
  accelerator: string;
  node: Pick<NodeLife, "name" | "address" | "updatedAtMs">;
}): Uint8Array {
  return toBinary(
    WorkerMetadataSchema,
    create(WorkerMetadataSchema, {
      workerRank: worker.rank,
      status: worker.status,
      updatedAt: BigInt(worker.node.updatedAtMs),
      workerGrpcEndpoint: worker.node.address,
      agentName: worker.node.name,
      accelerator: worker.accelerator,
      sourcePayload: { case: "tensorSource", value: { tensors: [] } },
    }),
  );
}

/** At most `count` of `all`, each as likely: askers of a large fleet must not all go to the same few. */
function sample<T>(all: T[], count: number): T[] {
  for (let i = 0; i < Math.min(count, all.length - 1); i++) {
    const j = i + Math.floor(Math.random() * (all.length - i));
    [all[i], all[j]] = [all[j] as T, all[i] as T];
  }
  return all.slice(0, count);
}

/** Who holds a source and rank: live, not draining, complete ones first, then by name. */
export function holdersIn(view: SourceView, rank: number): Holder[] {
  const able = view.heldWorkers().filter((worker) => worker.rank === rank && worker.node.state !== NodeState.DRAINING);
  const complete = sample(
    able.filter(({ status }) => status === SourceStatus.READY),
    LOOKUP_HOLDERS_MAX,
  );
  const filling = sample(
    able.filter(({ status }) => status === SourceStatus.INITIALIZING),
    LOOKUP_HOLDERS_MAX - complete.length,
  );
  return [complete, filling].flatMap((group) =>
    group
      .flatMap(({ node, holding }) => {
        const held = holding();
        return held === undefined ? [] : [{ node, held }];
      })
      .sort((a, b) => compareUtf8(a.node.name, b.node.name))
      .map(({ node: { name, address, epoch }, held }) =>
        create(HolderSchema, { node: name, address, epoch, holding: held }),
      ),
  );
}

/** Names of live holdings, for near ones. */
export function heldNames(view: SourceView): { identity: SourceIdentity; rank: number }[] {
  const ranks = new Set(view.heldWorkers().map(({ rank }) => rank));
  return [...ranks].map((rank) => ({ identity: view.identity, rank }));
}

/** A source as `mxctl sources` shows it; undefined when nothing of it is shown. */
export function sourceMessage(view: SourceView): Source | undefined {
  const shown = view.shown().sort((a, b) => b.updatedAtMs - a.updatedAtMs || compareUtf8(a.workerId, b.workerId));
  if (shown.length === 0) {
    return undefined;
  }
  return create(SourceSchema, {
    sourceId: view.sourceId,
    modelName: view.identity.modelName,
    revision: view.identity.revision,
    workers: shown.map(({ held, updatedAtMs, ...worker }) => ({
      ...worker,
      node: held?.node.name ?? "",
      updatedAt: BigInt(updatedAtMs),
      objectDigest: held?.objectDigest ?? new Uint8Array(),
    })),
  });
}
