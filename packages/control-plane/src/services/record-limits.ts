import { identityToJson } from "@weightline/proto";
import type { WorkerSummary } from "@weightline/proto/directory";
import type { SourceIdentity } from "@weightline/proto/p2p";

/** A worker id, in UTF-8 bytes. */
export const WORKER_ID_MAX_BYTES = 4096;
/** promises.md: what a directory keeps of one source or worker besides the opaque metadata, in bytes. */
export const RECORD_MAX_BYTES = 64 * 1024;

/** A publish whose parts are together shorter in UTF-16 units cannot have one that is too long in JSON's UTF-8. */
const SURELY_SMALL_UNITS = RECORD_MAX_BYTES / 12;

/** Units of all texts, and something for each entry. */
function unitsOf(texts: Readonly<Record<string, string>>): number {
  let units = 0;
  for (const key in texts) {
    units += key.length + (texts[key]?.length ?? 0) + 8;
  }
  return units;
}

function isSurelySmall(identity: SourceIdentity, workerId: string, worker: WorkerSummary): boolean {
  const { modelName, dtype, quantization, revision, mxVersion, backendFrameworkVersion, torchVersion } = identity;
  const { cudaVersion, tritonVersion, gpuArch, compileConfigDigest, extraParameters } = identity;
  const named = { modelName, dtype, quantization, revision, mxVersion, backendFrameworkVersion, torchVersion };
  const more = { cudaVersion, tritonVersion, gpuArch, compileConfigDigest };
  const all = [named, more, extraParameters, worker.topology, { workerId, accelerator: worker.accelerator }];
  return all.reduce((sum, texts) => sum + unitsOf(texts), 0) < Math.min(SURELY_SMALL_UNITS, WORKER_ID_MAX_BYTES / 3);
}

/** Why a publish is too large to be kept, if it is: field, size, limit. */
export function recordProblem(identity: SourceIdentity, workerId: string, worker: WorkerSummary): string | undefined {
  if (isSurelySmall(identity, workerId, worker)) {
    return undefined;
  }
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
