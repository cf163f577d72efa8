import type { WorkerSummary } from "@weightline/proto/directory";

/** A worker id, in UTF-8 bytes. */
export const WORKER_ID_MAX_BYTES = 4096;
/** promises.md: what a directory keeps of one source or worker besides the opaque metadata, in bytes. */
export const RECORD_MAX_BYTES = 64 * 1024;

/** Texts that are together shorter in UTF-16 units cannot be too long in JSON's UTF-8. */
const SURELY_SMALL_UNITS = RECORD_MAX_BYTES / 12;
/** More than an entry of JSON has beside its texts. */
const ENTRY_UNITS = 8;

/** Bytes of a worker's record, or less when they are surely few. */
function summaryBytes({ accelerator, topology }: WorkerSummary): number {
  let units = accelerator.length + ENTRY_UNITS;
  for (const key in topology) {
    units += key.length + (topology[key]?.length ?? 0) + ENTRY_UNITS;
  }
  return units < SURELY_SMALL_UNITS ? units : Buffer.byteLength(JSON.stringify([accelerator, topology]));
}

/** An encoded identity; a longer one is not even decoded, for which everybody would wait. */
const IDENTITY_MAX_ENCODED_BYTES = 2 * RECORD_MAX_BYTES;

/** Why an encoded identity is not decoded, if it is too long for that. */
export function encodedIdentityProblem(encoded: Uint8Array): string | undefined {
  return encoded.length > IDENTITY_MAX_ENCODED_BYTES
    ? tooLarge("identity", encoded.length, IDENTITY_MAX_ENCODED_BYTES)
    : undefined;
}

/** Why a publish is too large to be kept, if it is: field, size, limit. `identityBytes` are those of its record. */
export function recordProblem(identityBytes: number, workerId: string, worker: WorkerSummary): string | undefined {
  const workerIdBytes = Buffer.byteLength(workerId);
  if (workerIdBytes > WORKER_ID_MAX_BYTES) {
    return tooLarge("worker_id", workerIdBytes, WORKER_ID_MAX_BYTES);
  }
  if (identityBytes > RECORD_MAX_BYTES) {
    return tooLarge("identity", identityBytes, RECORD_MAX_BYTES);
  }
  const bytes = summaryBytes(worker);
  return bytes > RECORD_MAX_BYTES
    ? tooLarge("worker.accelerator and worker.topology", bytes, RECORD_MAX_BYTES)
    : undefined;
}

function tooLarge(field: string, bytes: number, limit: number): string {
  return `${field} of ${bytes} bytes exceeds ${limit} bytes`;
}
