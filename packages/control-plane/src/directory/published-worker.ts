import { fromBinary } from "@bufbuild/protobuf";
import { type WorkerSummary, WorkerSummarySchema } from "@weightline/proto/directory";
import { SourceStatus, SourceStatusSchema } from "@weightline/proto/p2p";
import { checkMessageValues, WeightlineError } from "@weightline/runtime";
import { bytesOfFields, varintBytes, withoutFields, writeVarint } from "./wire.ts";

/** A WorkerMetadata as a directory keeps it: what it reads itself, and the bytes that it only passes on. */
export interface PublishedWorker {
  summary: WorkerSummary;
  /** The encoded WorkerMetadata without status and updated_at, which are the directory's own. */
  bytes: Uint8Array;
}

const OWN_FIELDS = new Set([4, 5]);
const KNOWN_STATUS = new Set<number>(SourceStatusSchema.values.map(({ number }) => number));

/** The bytes of a worker that are read, not only passed on; more are not even decoded, for which everybody would wait. */
const READ_MAX_BYTES = 131_072;
const READ_FIELDS = new Set(WorkerSummarySchema.fields.map(({ number }) => number));

function checkReadBytes(encoded: Uint8Array): void {
  if (encoded.length <= READ_MAX_BYTES) {
    return;
  }
  const bytes = bytesOfFields(encoded, READ_FIELDS);
  if (bytes > READ_MAX_BYTES) {
    throw new WeightlineError(
      "ResourceExhausted",
      `worker has ${bytes} bytes besides what is passed on unread; at most ${READ_MAX_BYTES} are taken`,
      { field: "worker", value: `${bytes} bytes`, limit: `${READ_MAX_BYTES} bytes` },
    );
  }
}

/**
 * Reads an encoded WorkerMetadata; throws what protobuf throws when it is none, and ResourceExhausted for too much to read. A
 * status of no known number is UNKNOWN.
 */
export function readWorker(encoded: Uint8Array): PublishedWorker {
  checkMessageValues(WorkerSummarySchema, encoded);
  checkReadBytes(encoded);
  const summary = fromBinary(WorkerSummarySchema, encoded, { readUnknownFields: false });
  if (!KNOWN_STATUS.has(summary.status)) {
    summary.status = SourceStatus.UNKNOWN;
  }
  return { summary, bytes: withoutFields(encoded, OWN_FIELDS) };
}

const STATUS_TAG = (4 << 3) | 0;
const UPDATED_AT_TAG = (5 << 3) | 0;

/** The encoded WorkerMetadata of stored bytes with their status and time of update (Unix ms). */
export function withStatus(bytes: Uint8Array, status: SourceStatus, updatedAtMs: number): Uint8Array {
  const whole = Buffer.allocUnsafe(bytes.length + 2 + varintBytes(status) + varintBytes(updatedAtMs));
  whole.set(bytes);
  whole[bytes.length] = STATUS_TAG;
  const next = writeVarint(whole, bytes.length + 1, status);
  whole[next] = UPDATED_AT_TAG;
  writeVarint(whole, next + 1, updatedAtMs);
  return whole;
}
