import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { identityFromJson, identityToJson } from "@weightline/proto";
import { type Holding, HoldingSchema } from "@weightline/proto/common";
import type { WorkerSummary } from "@weightline/proto/directory";
import { type SourceIdentity, SourceStatus } from "@weightline/proto/p2p";
import type { HoldingWorker } from "../directory-worker.ts";

/** The records in Redis: JSON that a person can read. What does not have this form counts as absent. */

/** One rank of a stock worker, in the order of their publications. */
export interface RankRecord {
  rank: number;
  status: SourceStatus;
  load: number | undefined;
  accelerator: string;
  /** Redis's Unix ms of the last publish or heartbeat. */
  updatedAtMs: number;
}

/** A holding's worker: the name of its node, whose announces keep it alive. */
export interface HoldingRecord {
  node: string;
  rank: number;
  status: SourceStatus;
  accelerator: string;
  hidden: boolean;
  objectDigest: Uint8Array;
  /** Read only when somebody looks for holders; undefined for what is none. */
  holding: () => Holding | undefined;
}

const STATUS_NAMES: Readonly<Record<SourceStatus, string>> = {
  [SourceStatus.UNKNOWN]: "UNKNOWN",
  [SourceStatus.INITIALIZING]: "INITIALIZING",
  [SourceStatus.READY]: "READY",
  [SourceStatus.STALE]: "STALE",
};
const STATUS_BY_NAME = new Map<string, SourceStatus>(
  Object.entries(STATUS_NAMES).map(([value, name]) => [name, Number(value) as SourceStatus]),
);

/** A status as records spell it; one that the contract does not know is UNKNOWN. */
export function statusName(status: SourceStatus): string {
  return STATUS_NAMES[status] ?? STATUS_NAMES[SourceStatus.UNKNOWN];
}

/**
 * The hash field of a worker: its id. Ids that begin like the record's own fields get a prefix that no other id has, so
 * that `__attributes__` is an ordinary id.
 */
export function workerField(workerId: string): string {
  return workerId.startsWith("__") ? `__:${workerId}` : workerId;
}

/** The worker id of a hash field; undefined for the record's own fields. */
export function workerOfField(field: string): string | undefined {
  return field.startsWith("__:") ? field.slice(3) : field.startsWith("__") ? undefined : field;
}

/** The JSON of a record's text; undefined for none. */
export function parse(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? "");
  } catch {
    return undefined;
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

/** The contract's ranks have 32 bits: a larger one could be in no reply. */
function isRank(value: unknown): value is number {
  return isCount(value) && value < 2 ** 32;
}

function readRank(json: unknown): RankRecord | undefined {
  if (!isRecord(json)) {
    return undefined;
  }
  const { rank, load, accelerator, updated_at: updatedAtMs } = json;
  const status = STATUS_BY_NAME.get(String(json["status"]));
  return isRank(rank) && isCount(updatedAtMs) && status !== undefined && typeof accelerator === "string"
    ? { rank, status, accelerator, updatedAtMs, load: typeof load === "number" ? load : undefined }
    : undefined;
}

/** A holding of its JSON; undefined for what is none. */
export function holdingOf(json: JsonValue): Holding | undefined {
  try {
    const holding = fromJson(HoldingSchema, json, { ignoreUnknownFields: true });
    return holding.holdingId === "" ? undefined : holding;
  } catch {
    return undefined;
  }
}

function readHolding(json: Record<string, unknown>): HoldingRecord | undefined {
  const { node, rank, accelerator, hidden, object_digest: digest, holding } = json;
  const status = STATUS_BY_NAME.get(String(json["status"]));
  const whole =
    typeof node === "string" &&
    isRank(rank) &&
    status !== undefined &&
    typeof accelerator === "string" &&
    isRecord(holding);
  return whole
    ? {
        node,
        rank,
        status,
        accelerator,
        hidden: hidden === true,
        objectDigest: Buffer.from(String(digest ?? ""), "hex"),
        holding: () => holdingOf(holding as JsonValue),
      }
    : undefined;
}

/** A worker's record. */
export function readWorkerRecord(text: string): { ranks: RankRecord[] } | { holding: HoldingRecord } | undefined {
  const json = parse(text);
  if (!isRecord(json)) {
    return undefined;
  }
  if (json["node"] !== undefined) {
    const holding = readHolding(json);
    return holding === undefined ? undefined : { holding };
  }
  const ranks = Array.isArray(json["ranks"]) ? json["ranks"].map(readRank) : [];
  return ranks.length > 0 && ranks.every((rank) => rank !== undefined) ? { ranks } : undefined;
}

/** The record of a holding's worker; the same holding gives the same text. */
export function writeHoldingRecord(node: string, worker: HoldingWorker, holding: Holding): string {
  return JSON.stringify({
    node,
    rank: worker.rank,
    status: statusName(worker.status),
    accelerator: worker.accelerator,
    ...(worker.hidden ? { hidden: true } : {}),
    object_digest: Buffer.from(holding.objectDigest).toString("hex"),
    holding: toJson(HoldingSchema, holding),
  });
}

export function readTopology(text: string | null): Record<string, string> {
  const json = text === null ? undefined : parse(text);
  return isRecord(json) && Object.values(json).every((value) => typeof value === "string")
    ? (json as Record<string, string>)
    : {};
}

/** What a person sees of a worker's metadata beside its bytes. */
export function aboutWorker(summary: WorkerSummary, bytes: number): string {
  return JSON.stringify({
    agent_name: summary.agentName,
    worker_grpc_endpoint: summary.workerGrpcEndpoint,
    metadata_endpoint: summary.metadataEndpoint,
    accelerator: summary.accelerator,
    metadata_bytes: bytes,
  });
}

/** Many workers publish one identity. */
const writtenIdentities = new WeakMap<SourceIdentity, string>();

export function writeIdentity(identity: SourceIdentity): string {
  const written = writtenIdentities.get(identity) ?? JSON.stringify(identityToJson(identity));
  writtenIdentities.set(identity, written);
  return written;
}

export function readIdentity(text: string): SourceIdentity | undefined {
  return identityFromJson(parse(text));
}
