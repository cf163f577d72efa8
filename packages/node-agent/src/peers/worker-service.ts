import { create, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { computeSourceId } from "@weightline/proto";
import { type GetTensorManifestResponse, GetTensorManifestResponseSchema, WorkerService } from "@weightline/proto/p2p";
import { route, type ServiceRoute } from "@weightline/runtime";
import type { Holding } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import { readLayoutItems } from "../layout-reader.ts";
import type { LeaseTable } from "../leases/lease-table.ts";
import type { StoreFolder } from "../store/store-folder.ts";

export interface WorkerServiceOptions {
  node: string;
  store: StoreFolder;
  registry: HoldingRegistry;
  leases: LeaseTable;
  draining: () => boolean;
  /** contract.md: MX_TRANSFER_TIMEOUT in seconds, for leases of reads. */
  transferTimeoutSeconds: number;
}

/** contract.md, WorkerService rules: a stock client takes at most 4 MiB, about 42,000 tensors. */
const STOCK_ITEMS_MAX = 42_000;
const STOCK_MESSAGE_MAX_BYTES = 4 * 1024 * 1024;
/** What PrepareTensorRead has around a manifest. */
const LEASE_BYTES = 100;
/** More than a tensor's row has besides its texts. */
const ROW_MAX_BYTES = 40;
const LEAST_TIMEOUT_SECONDS = 120;
const EXTRA_SECONDS = 30;

interface Worker {
  holding: Holding;
  rank: number;
  workerId: string;
  sourceId: string;
}

/** The worker's id that a holding has under one of its ranks. */
export function workerIdOf(holding: Holding, rank: number): string {
  return `${holding.id}-${rank}`;
}

/** Refuses a manifest that a stock client's limit would make it throw away, with all that it had received. */
function checkSize(manifest: GetTensorManifestResponse): void {
  const textBytes = manifest.tensors.reduce((sum, { name, dtype }) => sum + Buffer.byteLength(name) + dtype.length, 0);
  if (textBytes + ROW_MAX_BYTES * (manifest.tensors.length + 1) + LEASE_BYTES <= STOCK_MESSAGE_MAX_BYTES) {
    return;
  }
  const bytes = toBinary(GetTensorManifestResponseSchema, manifest).length + LEASE_BYTES;
  if (bytes > STOCK_MESSAGE_MAX_BYTES) {
    throw new ConnectError(
      `the manifest's ${bytes} bytes are above what a stock client takes (${STOCK_MESSAGE_MAX_BYTES})`,
      Code.ResourceExhausted,
    );
  }
}

/**
 * model_express.p2p.WorkerService. A holding in DRAM is registered nowhere yet, so its manifest's `addr` is the byte's
 * position in the object (segments one after another): names, sizes and dtypes are right, a READ is not possible.
 */
export function createWorkerService({
  node,
  store,
  registry,
  leases,
  draining,
  transferTimeoutSeconds,
}: WorkerServiceOptions): ServiceRoute {
  const workersOf = (sourceId: string): Worker[] =>
    registry
      .withSource(sourceId)
      .flatMap((holding) =>
        holding.record.identities
          .filter(({ identity }) => computeSourceId(identity) === sourceId)
          .map(({ rank }) => ({ holding, rank, workerId: workerIdOf(holding, rank), sourceId })),
      );

  /** The worker that a request names, of those that `may` be it. */
  const named = (sourceId: string, workerId: string | undefined, may: (worker: Worker) => boolean): Worker => {
    const workers = workersOf(sourceId).filter(may);
    const [first] = workers;
    if (first === undefined) {
      const known = [
        ...new Set(
          registry.all().flatMap(({ record }) => record.identities.map(({ identity }) => computeSourceId(identity))),
        ),
      ];
      throw new ConnectError(
        `mx_source_id mismatch: expected ${known.slice(0, 3).join(", ") || "none"}, got ${sourceId}`,
        Code.FailedPrecondition,
      );
    }
    if (workerId === undefined) {
      return first;
    }
    const worker = workers.find((candidate) => candidate.workerId === workerId);
    if (worker === undefined) {
      throw new ConnectError(
        `worker_id mismatch: expected ${first.workerId}, got ${workerId}`,
        Code.FailedPrecondition,
      );
    }
    return worker;
  };

  const checkSource = (sourceId: string) => {
    if (sourceId === "") {
      throw new ConnectError("mx_source_id is required for tensor reads", Code.InvalidArgument);
    }
  };

  const find = (sourceId: string, workerId: string | undefined): Worker => {
    checkSource(sourceId);
    if (draining()) {
      throw new ConnectError("tensor source is draining", Code.Unavailable);
    }
    return named(sourceId, workerId, ({ holding }) => holding.record.state === "complete");
  };

  const manifestOf = async ({ holding, rank, workerId, sourceId }: Worker): Promise<GetTensorManifestResponse> => {
    if ((holding.layout?.itemCount ?? 0) > STOCK_ITEMS_MAX) {
      throw new ConnectError(
        `the manifest of ${holding.layout?.itemCount} tensors is above what a stock client takes (${STOCK_ITEMS_MAX})`,
        Code.ResourceExhausted,
      );
    }
    const items = await readLayoutItems(store.holdingFolder(holding.id));
    const starts: bigint[] = [];
    let position = 0n;
    for (const { bytes } of holding.layout?.segments ?? []) {
      starts.push(position);
      position += BigInt(bytes);
    }
    const tensors = items.map(({ name, dtype, segment, offset, bytes }) => ({
      name,
      dtype,
      size: bytes,
      addr: (starts[segment] ?? 0n) + offset,
      deviceId: 0,
    }));
    const manifest = create(GetTensorManifestResponseSchema, {
      tensors,
      mxSourceId: sourceId,
      metadataEndpoint: "",
      agentName: node,
      workerRank: rank,
      accelerator: "cpu",
      workerId,
    });
    checkSize(manifest);
    return manifest;
  };

  const noArtifact = () => {
    throw new ConnectError("artifact manifest is not available for this worker", Code.NotFound);
  };

  return route(WorkerService, {
    getTensorManifest: ({ mxSourceId, workerId }) => manifestOf(find(mxSourceId, workerId)),
    async prepareTensorRead({ mxSourceId, workerId }) {
      const worker = find(mxSourceId, workerId);
      const manifest = await manifestOf(worker);
      const seconds = 2 * Math.max(LEAST_TIMEOUT_SECONDS, transferTimeoutSeconds) + EXTRA_SECONDS;
      return { leaseId: leases.grantTimed(worker.holding, seconds * 1000).id, manifest };
    },
    releaseTensorRead({ mxSourceId, workerId, leaseId }) {
      checkSource(mxSourceId);
      // Whatever became of the holding since, and while this node drains.
      named(mxSourceId, workerId, () => true);
      const lease = leases.find(leaseId);
      if (lease === undefined || lease.owner !== undefined) {
        throw new ConnectError(`tensor read lease not found or expired: ${leaseId}`, Code.NotFound);
      }
      leases.release(leaseId, undefined);
      return {};
    },
    getArtifactManifestHeader: noArtifact,
    getArtifactManifestChunks: noArtifact,
    prepareArtifactChunk: noArtifact,
    releaseArtifactChunk: noArtifact,
  });
}
