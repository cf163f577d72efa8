import { identityToJson } from "@weightline/proto";
import type { WorkerSummary } from "@weightline/proto/directory";
import type { SourceIdentity } from "@weightline/proto/p2p";

/** A worker id, in UTF-8 bytes. */
export const WORKER_ID_MAX_BYTES = 4096;
/** promises.md: what a directory keeps of one source or worker besides the opaque metadata, in bytes. */
export const RECORD_MAX_BYTES = 64 * 1024;

/** Why a publish is too large to be kept, if it is: field, size, limit. */
export function recordProblem(identity: SourceIdentity, workerId: string, worker: WorkerSummary): string | undefined {
  const sizes: [field: string, bytes: number, limit: number][] = [
    ["worker_id", Buffer.byteLength(workerId), WORKER_ID_MAX_BYTES],
    ["identity", Buffer.byteLength(JSON.stringify(identityToJson(identity))), RECORD_MAX_BYTES],
    ["worker.accelerator and worker.topology", summaryBytes(worker), RECORD_MAX_BYTES],
  ];
  const over = sizes.find(([, bytes, limit]) => bytes > limit);
  return over === undefined ? undefined : `${over[0]} of ${over[1]} bytes exceeds ${over[2]} bytes`;
}

function summaryBytes({ accelerator, topology }: WorkerSummary): number {
  return Buffer.byteLength(JSON.stringify([accelerator, topology]));
}
