import { computeSourceId, enumName } from "@weightline/proto";
import { GetResponseSchema, type PublishRequest, PublishRequestSchema } from "@weightline/proto/directory";
import {
  type GetMetadataRequest,
  type ListSourcesRequest,
  P2pService,
  SourceIdentitySchema,
  SourceStatusSchema,
  type UpdateStatusRequest,
  WorkerMetadataSchema,
} from "@weightline/proto/p2p";
import {
  createBoundedLog,
  EncodedMessage,
  type Logger,
  malformedRequest,
  routeInWireForms,
  type ServiceRoute,
  toWeightlineError,
  WeightlineError,
} from "@weightline/runtime";
import type { Directory, Publication, PublishOutcome, UpdateOutcome, WorkerQuery } from "../directory/directory.ts";
import { readWorker } from "../directory/published-worker.ts";
import { createIdentityReader, type IdentityReader } from "./identity-reader.ts";
import { encodedIdentityProblem, recordProblem } from "./record-limits.ts";
import { createSkewWarning } from "./skew-warning.ts";

const KNOWN_STATUS = new Set(SourceStatusSchema.values.map(({ number }) => number));

/** A worker's metadata is passed on undecoded, and what publishes with an identity that is known decodes it not again. */
const FORMS = { publishMetadata: { input: PublishRequestSchema }, getMetadata: { output: GetResponseSchema } };

/** contract.md: clamped to 0..1; what is no number counts as none. */
export function clampLoad(load: number | undefined): number | undefined {
  return load === undefined || !Number.isFinite(load) ? undefined : Math.min(1, Math.max(0, load));
}

/** A part of a request; one that does not decode is the caller's fault. */
function readPart<T>(typeName: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof WeightlineError) {
      throw error;
    }
    throw malformedRequest(typeName, error instanceof Error ? error.message : String(error));
  }
}

/** What a request publishes, or contract.md's words for what it lacks, checked in this order. */
function publicationOf(identities: IdentityReader, request: PublishRequest): Publication | string {
  const { identity: encoded, workerId, worker } = request;
  if (encoded === undefined) {
    return "identity is required";
  }
  const problem = encodedIdentityProblem(encoded);
  if (problem !== undefined) {
    return problem;
  }
  const { identity, sourceId, recordBytes } = readPart(SourceIdentitySchema.typeName, () => identities.read(encoded));
  if (identity.modelName === "") {
    return "identity.model_name is required";
  }
  if (workerId === "") {
    return "worker_id is required";
  }
  if (worker === undefined) {
    return "worker is required";
  }
  const published = readPart(WorkerMetadataSchema.typeName, () => readWorker(worker));
  return recordProblem(recordBytes, workerId, published.summary) ?? { sourceId, workerId, identity, worker: published };
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
  if (request.minTrainingStep !== undefined) {
    query.minTrainingStep = request.minTrainingStep;
  }
  if (request.limit !== undefined) {
    query.limit = request.limit;
  }
  return query;
}

const REFUSED_PUBLISHES: Readonly<Record<Exclude<PublishOutcome, "stored">, string>> = {
  superseded: "a newer publish of this worker was stored before it",
  taken: "worker_id is that of a holding that a node announces",
};
const REFUSED_UPDATES: Readonly<Record<Exclude<UpdateOutcome, "stored">, string>> = {
  unknown: "that worker and rank are not known under this source",
  superseded: "a newer publish or heartbeat of this worker was stored before it",
};

/** model_express.p2p.P2pService by the contract's rules: verdicts are in replies, not in gRPC codes. */
export function createP2pService(directory: Directory, log: Logger): ServiceRoute {
  const bounded = createBoundedLog(log);
  const identities = createIdentityReader();
  const warnOfSkew = createSkewWarning(log);
  return routeInWireForms(P2pService, FORMS, {
    async publishMetadata(request: PublishRequest) {
      const publication = publicationOf(identities, request);
      if (typeof publication === "string") {
        bounded("info", { event: "publish-refused", error: publication }, "a publish was refused");
        return { success: false, message: publication, mxSourceId: "", workerId: "" };
      }
      const { sourceId, workerId } = publication;
      warnOfSkew(workerId, Number(publication.worker.summary.updatedAt));
      let problem: string;
      try {
        const outcome = await directory.publish(publication);
        if (outcome === "stored") {
          return { success: true, message: "published", mxSourceId: sourceId, workerId };
        }
        problem = REFUSED_PUBLISHES[outcome];
      } catch (error) {
        problem = toWeightlineError(error).message;
      }
      bounded("warn", { event: "publish-failed", source_id: sourceId, error: problem }, "a publish was not stored");
      return { success: false, message: `Failed to publish metadata: ${problem}`, mxSourceId: "", workerId: "" };
    },
    async listSources(request: ListSourcesRequest) {
      return new EncodedMessage(await directory.list(queryOf(request)));
    },
    async getMetadata({ mxSourceId, workerId }: GetMetadataRequest) {
      if (mxSourceId === "" || workerId === "") {
        return { found: false, mxSourceId: "", workerId: "" };
      }
      const worker = await directory.worker(mxSourceId, workerId);
      return worker === undefined
        ? { found: false, mxSourceId, workerId }
        : { found: true, worker: worker.metadata, mxSourceId, workerId, identity: worker.identity };
    },
    async updateStatus({ mxSourceId, workerId, workerRank, status, sourceLoad }: UpdateStatusRequest) {
      if (mxSourceId === "" || workerId === "") {
        return { success: false, message: mxSourceId === "" ? "mx_source_id is required" : "worker_id is required" };
      }
      if (!KNOWN_STATUS.has(status)) {
        return { success: false, message: `invalid status value: ${status}` };
      }
      let problem: string;
      try {
        const outcome = await directory.updateStatus({
          sourceId: mxSourceId,
          workerId,
          rank: workerRank,
          status,
          sourceLoad: clampLoad(sourceLoad),
        });
        if (outcome === "stored") {
          return { success: true, message: enumName(SourceStatusSchema, status) };
        }
        problem = REFUSED_UPDATES[outcome];
      } catch (error) {
        problem = toWeightlineError(error).message;
      }
      return { success: false, message: `Failed to update status: ${problem}` };
    },
  });
}
