import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type Directory, readWorker, type WorkerQuery } from "@weightline/control-plane";
import { computeSourceId } from "@weightline/proto";
import {
  ListSourcesResponseSchema,
  SourceIdentitySchema,
  SourceStatus,
  WorkerMetadataSchema,
} from "@weightline/proto/p2p";

/** The source that the Redis directory's tests publish under. */
export const IDENTITY = create(SourceIdentitySchema, { modelName: "Org/Model", mxVersion: "0.5.0" });
export const SOURCE = computeSourceId(IDENTITY);

const WAIT_MS = 15_000;

export function publication(workerId: string, fields: object = {}) {
  const metadata = create(WorkerMetadataSchema, { accelerator: "cuda", ...fields });
  return {
    sourceId: SOURCE,
    workerId,
    identity: IDENTITY,
    worker: readWorker(toBinary(WorkerMetadataSchema, metadata)),
  };
}

/** One heartbeat of rank 0. */
export function beat(directory: Directory, workerId: string, status: SourceStatus = SourceStatus.READY) {
  return directory.updateStatus({ sourceId: SOURCE, workerId, rank: 0, status, sourceLoad: undefined });
}

/** Publishes a worker and says that it is READY. */
export async function ready(directory: Directory, workerId: string, fields: object = {}): Promise<void> {
  await directory.publish(publication(workerId, fields));
  await beat(directory, workerId);
}

/** Ids of the workers that a query lists; by default the READY ones of the source. */
export async function listed(
  directory: Directory,
  query: WorkerQuery = { sourceId: SOURCE, status: SourceStatus.READY },
): Promise<string[]> {
  return fromBinary(ListSourcesResponseSchema, await directory.list(query)).instances.map(({ workerId }) => workerId);
}

/** Tries until it succeeds: a lost connection comes back by itself. */
export async function eventually<T>(attempt: () => Promise<T>): Promise<T> {
  for (const end = performance.now() + WAIT_MS; ; ) {
    try {
      return await attempt();
    } catch (error) {
      if (performance.now() > end) {
        throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}
