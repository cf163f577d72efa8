import { create } from "@bufbuild/protobuf";
import { computeSourceId, enumName } from "@weightline/proto";
import {
  type ListSourcesRequest,
  P2pService,
  type PublishMetadataRequest,
  type SourceIdentity,
  SourceInstanceRefSchema,
  SourceStatusSchema,
} from "@weightline/proto/p2p";
import { createBoundedLog, type Logger, route, type ServiceRoute, toWeightlineError } from "@weightline/runtime";
import type { Directory, Worker, WorkerQuery } from "../directory/directory.ts";

const KNOWN_STATUS = new Set(SourceStatusSchema.values.map(({ number }) => number));

/** contract.md, "Publish": checked in this order. */
function publishProblem(request: PublishMetadataRequest): string | undefined {
  if (request.identity === undefined) {
    return "identity is required";
  }
  if (request.identity.modelName === "") {
    return "identity.model_name is required";
  }
  if (request.workerId === "") {
    return "worker_id is required";
  }
  return request.worker === undefined ? "worker is required" : undefined;
}

const STEP_MAX = 2n ** 64n - 1n;

/**
 * contract.md: `training_step`, else `version`; undefined when it is no whole number of 64 bits. One that does not fit the
 * field would spoil every list that its worker is in.
 */
function trainingStep(identity: SourceIdentity): bigint | undefined {
  const text = identity.extraParameters["training_step"] ?? identity.extraParameters["version"];
  const step = text !== undefined && /^\d{1,20}$/.test(text) ? BigInt(text) : undefined;
  return step !== undefined && step <= STEP_MAX ? step : undefined;
}

/** contract.md: clamped to 0..1; what is no number counts as none. */
export function clampLoad(load: number | undefined): number | undefined {
  return load === undefined || !Number.isFinite(load) ? undefined : Math.min(1, Math.max(0, load));
}

function queryOf(request: ListSourcesRequest): WorkerQuery {
  const query: WorkerQuery = {};
  if (request.identity !== undefined && request.identity.modelName !== "") {
    query.sourceId = computeSourceId(request.identity);
  }
  if (request.statusFilter !== undefined && KNOWN_STATUS.has(request.statusFilter)) {
    query.status = request.statusFilter;
  }
  if (request.modelNameFilter !== undefined) {
    query.modelName = request.modelNameFilter;
  }
  if (request.workerRankFilter !== undefined) {
    query.rank = request.workerRankFilter;
  }
  if (request.minUpdatedAt !== undefined) {
    query.minUpdatedAtMs = Number(request.minUpdatedAt);
  }
  return query;
}

function toInstance(worker: Worker) {
  const step = trainingStep(worker.identity);
  return create(SourceInstanceRefSchema, {
    mxSourceId: worker.sourceId,
    workerId: worker.workerId,
    modelName: worker.identity.modelName,
    workerRank: worker.rank,
    accelerator: worker.metadata.accelerator,
    updatedAt: BigInt(worker.updatedAtMs),
    topology: worker.metadata.topology,
    ...(step === undefined ? {} : { trainingStep: step }),
    ...(worker.sourceLoad === undefined ? {} : { sourceLoad: worker.sourceLoad }),
  });
}

/** model_express.p2p.P2pService by the contract's rules: verdicts are in replies, not in gRPC codes. */
export function createP2pService(directory: Directory, log: Logger): ServiceRoute {
  const bounded = createBoundedLog(log);
  return route(P2pService, {
    async publishMetadata(request) {
      const problem = publishProblem(request);
      const { identity, worker, workerId } = request;
      if (problem !== undefined || identity === undefined || worker === undefined) {
        bounded("info", { event: "publish-refused", error: problem ?? "" }, "a publish was refused");
        return { success: false, message: problem ?? "", mxSourceId: "", workerId: "" };
      }
      const sourceId = computeSourceId(identity);
      try {
        await directory.publish({ sourceId, workerId, identity, metadata: worker });
      } catch (error) {
        bounded(
          "warn",
          { event: "publish-failed", source_id: sourceId, error: toWeightlineError(error).message },
          "a publish was not stored",
        );
        return {
          success: false,
          message: `Failed to publish metadata: ${toWeightlineError(error).message}`,
          mxSourceId: "",
          workerId: "",
        };
      }
      return { success: true, message: "published", mxSourceId: sourceId, workerId };
    },
    async listSources(request) {
      const workers = await directory.workers(queryOf(request));
      const least = request.minTrainingStep;
      const right =
        least === undefined ? workers : workers.filter(({ identity }) => (trainingStep(identity) ?? -1n) >= least);
      const limited = request.limit === undefined ? right : right.slice(0, request.limit);
      return { instances: limited.map(toInstance) };
    },
    async getMetadata({ mxSourceId, workerId }) {
      if (mxSourceId === "" || workerId === "") {
        return { found: false, mxSourceId: "", workerId: "" };
      }
      const worker = await directory.worker(mxSourceId, workerId);
      if (worker === undefined) {
        return { found: false, mxSourceId, workerId };
      }
      const metadata = { ...worker.metadata, status: worker.status, updatedAt: BigInt(worker.updatedAtMs) };
      return { found: true, worker: metadata, mxSourceId, workerId, identity: worker.identity };
    },
    async updateStatus({ mxSourceId, workerId, workerRank, status, sourceLoad }) {
      if (mxSourceId === "" || workerId === "") {
        return { success: false, message: mxSourceId === "" ? "mx_source_id is required" : "worker_id is required" };
      }
      if (!KNOWN_STATUS.has(status)) {
        return { success: false, message: `invalid status value: ${status}` };
      }
      try {
        const known = await directory.updateStatus({
          sourceId: mxSourceId,
          workerId,
          rank: workerRank,
          status,
          sourceLoad: clampLoad(sourceLoad),
        });
        return known
          ? { success: true, message: enumName(SourceStatusSchema, status) }
          : {
              success: false,
              message: `Failed to update status: worker ${workerId} of rank ${workerRank} is not known under ${mxSourceId}`,
            };
      } catch (error) {
        return { success: false, message: `Failed to update status: ${toWeightlineError(error).message}` };
      }
    },
  });
}
