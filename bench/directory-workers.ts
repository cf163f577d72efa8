// Workers and nodes as the directory's bench makes them, as bytes that are ready to be sent.
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { type HoldingSchema, HoldingState, NodeState, Tier } from "@weightline/proto/common";
import { type AnnounceRequest, AnnounceRequestSchema } from "@weightline/proto/node";
import {
  GetMetadataRequestSchema,
  ListSourcesRequestSchema,
  PublishMetadataRequestSchema,
  type SourceIdentity,
  SourceIdentitySchema,
  SourceStatus,
  UpdateStatusRequestSchema,
} from "@weightline/proto/p2p";
import { type PreparedCall, prepareCall } from "../test/support/http2-frames.ts";

const P2P = "/model_express.p2p.P2pService";
const RANKS = 8;
export const HOLDINGS_PER_NODE = 8;

/** A stock worker of a group that shares one source id. */
export interface WorkerKey {
  group: string;
  number: number;
}

export function identityOf(group: string): SourceIdentity {
  return create(SourceIdentitySchema, {
    modelName: `bench/${group}`,
    mxVersion: "0.7.0",
    tensorParallelSize: RANKS,
    dtype: "bfloat16",
    revision: "5f0b02c75b57c5855da9ae460ce51323ea669d8a",
    extraParameters: { training_step: "17" },
  });
}

const sourceIds = new Map<string, string>();
function sourceIdOf(group: string): string {
  const known = sourceIds.get(group) ?? computeSourceId(identityOf(group));
  sourceIds.set(group, known);
  return known;
}

export const workerIdOf = ({ group, number }: WorkerKey) => `${group}-${String(number).padStart(6, "0")}-5f2b7c1d`;

/** As stock vLLM publishes it: endpoints, no tensors. */
export function publication(
  key: WorkerKey,
  nixlMetadata?: Uint8Array,
): MessageInitShape<typeof PublishMetadataRequestSchema> {
  const address = `10.${(key.number >> 16) & 255}.${(key.number >> 8) & 255}.${key.number & 255}`;
  return {
    identity: identityOf(key.group),
    workerId: workerIdOf(key),
    worker: {
      workerRank: key.number % RANKS,
      metadataEndpoint: `${address}:5555`,
      workerGrpcEndpoint: `${address}:6555`,
      agentName: `mx-${workerIdOf(key)}`,
      accelerator: "cuda",
      status: SourceStatus.INITIALIZING,
      topology: { rack: String(key.number % 64), zone: "a" },
      sourcePayload: { case: "tensorSource", value: {} },
      ...(nixlMetadata === undefined
        ? {}
        : { backendMetadata: { case: "nixlMetadata" as const, value: nixlMetadata } }),
    },
  };
}

export function publishCall(key: WorkerKey): PreparedCall {
  const message = create(PublishMetadataRequestSchema, publication(key));
  return prepareCall(`${P2P}/PublishMetadata`, toBinary(PublishMetadataRequestSchema, message));
}

export function updateCall(key: WorkerKey, status: SourceStatus = SourceStatus.READY): PreparedCall {
  const message = create(UpdateStatusRequestSchema, {
    mxSourceId: sourceIdOf(key.group),
    workerId: workerIdOf(key),
    workerRank: key.number % RANKS,
    status,
    sourceLoad: 0.25,
  });
  return prepareCall(`${P2P}/UpdateStatus`, toBinary(UpdateStatusRequestSchema, message));
}

export function getCall(key: WorkerKey): PreparedCall {
  const message = create(GetMetadataRequestSchema, { mxSourceId: sourceIdOf(key.group), workerId: workerIdOf(key) });
  return prepareCall(`${P2P}/GetMetadata`, toBinary(GetMetadataRequestSchema, message));
}

/** What stock clients ask: the identity and READY alone. */
export function listCall(group: string): PreparedCall {
  const message = create(ListSourcesRequestSchema, {
    identity: identityOf(group),
    statusFilter: SourceStatus.READY,
  });
  return prepareCall(`${P2P}/ListSources`, toBinary(ListSourcesRequestSchema, message));
}

/** Replies of Publish, UpdateStatus and GetMetadata begin with their verdict, field 1. */
export const isTrue = (message: Buffer) => message[0] === 8 && message[1] === 1;

/** A node holds eight of a hundred models, each under one name. */
function holdingsOf(node: number): MessageInitShape<typeof HoldingSchema>[] {
  return Array.from({ length: HOLDINGS_PER_NODE }, (_, i) => {
    const identity = filesIdentity(`bench/model-${(node + i * 13) % 100}`);
    return {
      holdingId: (node * HOLDINGS_PER_NODE + i).toString(16).padStart(32, "0"),
      identities: [{ identity, rank: 0, sourceId: computeSourceId(identity) }],
      state: HoldingState.COMPLETE,
      kind: "files",
      layoutDigest: Buffer.alloc(32, i),
      objectDigest: Buffer.alloc(32, i + 1),
      totalBytes: 16_000_000_000n,
      verifiedBytes: 16_000_000_000n,
      chunkBytes: 1 << 20,
      items: 200n,
      tier: Tier.DRAM,
      originHoldingId: "0".repeat(32),
      layoutBytes: 20_000n,
      algorithm: "xxh3-128",
    };
  });
}

function announce(node: number, sequence: number, withHoldings: boolean): AnnounceRequest {
  return create(AnnounceRequestSchema, {
    node: `node-${String(node).padStart(5, "0")}`,
    epoch: 1n,
    sequence: BigInt(sequence),
    bootId: `boot-${node}`,
    storeId: `store-${node}`,
    address: `10.${(node >> 16) & 255}.${(node >> 8) & 255}.${node & 255}:9345`,
    state: NodeState.READY,
    memory: { limit: 512n * 2n ** 30n, used: 128n * 10n ** 9n },
    holdingsRevision: 1n,
    ttlMs: 60_000,
    version: "0.1.0",
    protection: "sealed",
    ...(withHoldings ? { holdings: { holdings: holdingsOf(node) } } : {}),
  });
}

/** One node's announce. */
export function announceBytes(node: number, sequence: number, withHoldings: boolean): Uint8Array {
  return toBinary(AnnounceRequestSchema, announce(node, sequence, withHoldings));
}
