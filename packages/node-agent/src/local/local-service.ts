import { randomBytes } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import { filesIdentity } from "@weightline/proto";
import {
  AgentService,
  type HeldSchema,
  type StatusResponseSchema,
  type Wanted as WantedMessage,
} from "@weightline/proto/local";
import { type DescriptorServerHandle, native } from "@weightline/rdma-native";
import { route, type ServiceRoute, toWeightlineError, WeightlineError } from "@weightline/runtime";
import type { AcquireOutcome, Acquirer } from "../fills/acquirer.ts";
import type { FillBoard } from "../fills/fill-board.ts";
import type { Loaded, Loader } from "../fills/load.ts";
import { progressStream, watchFill } from "../fills/progress-stream.ts";
import { type Wanted, wantedFrom } from "../fills/wanted.ts";
import type { Evictor } from "../holdings/evictor.ts";
import { type Holding, modelNameOf, toMessage } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import { segmentPaths } from "../layout-reader.ts";
import type { Lease, LeaseTable } from "../leases/lease-table.ts";
import type { TransferLog } from "../transfers/transfer-log.ts";
import { type Caller, callerKey, requireOperator } from "./caller.ts";

/** What Status tells beside holdings and leases. */
export type StatusFacts = Omit<MessageInitShape<typeof StatusResponseSchema>, "$typeName" | "holdings" | "leases">;

export interface LocalServiceOptions {
  registry: HoldingRegistry;
  acquirer: Acquirer;
  loads: FillBoard<Loaded>;
  loader: Loader;
  evictor: Evictor;
  leases: LeaseTable;
  transfers: TransferLog;
  descriptors: () => DescriptorServerHandle;
  descriptorSocket: string;
  status: () => StatusFacts;
  draining: () => boolean;
  drain: () => void;
  onAcquire: (outcome: string, seconds: number) => void;
  onAttach: (seconds: number) => void;
}

const DEFAULT_TIMEOUT_S = 300;
const TIMEOUT_MAX_S = 86_400;
/** architecture.md: a ticket lives so long. */
const TICKET_TTL_MS = 10_000;
/** How long an evict waits for memory to be free before it says that it is pending. */
const EVICT_PATIENCE_MS = 5000;
const NAME_MAX_BYTES = 512;

function callerOf(context: HandlerContext): Caller {
  const caller = context.values.get(callerKey);
  if (caller === undefined) {
    throw new WeightlineError("PermissionDenied", "the calling process is not known any more", {
      wayOut: "connect again",
    });
  }
  return caller;
}

/** What a request's words mean. Throws InvalidArgument naming the field. */
export function readWanted(message: WantedMessage | undefined): Wanted {
  const missing = () =>
    new WeightlineError("InvalidArgument", "wanted.model.model_name is required", {
      field: "wanted",
      limit: "a model name, an identity or a source id",
      wayOut: "name the model",
    });
  const name = message?.name;
  const rank = message?.rank ?? 0;
  switch (name?.case) {
    case "model": {
      checkName("model_name", name.value.modelName);
      checkName("revision", name.value.revision);
      if (name.value.modelName === "") {
        throw missing();
      }
      return wantedFrom({ identity: filesIdentity(name.value.modelName, name.value.revision), rank });
    }
    case "identity":
      checkName("identity.model_name", name.value.modelName);
      if (name.value.modelName === "") {
        throw new WeightlineError("InvalidArgument", "identity.model_name is required", {
          field: "identity.model_name",
        });
      }
      return wantedFrom({ identity: name.value, rank });
    case "sourceId":
      if (!/^[0-9a-f]{16}$/.test(name.value)) {
        throw new WeightlineError("InvalidArgument", `source id "${name.value}" is not 16 lowercase hex digits`, {
          field: "source_id",
          value: name.value,
          limit: "16 lowercase hex digits",
        });
      }
      return {
        sourceId: name.value,
        rank,
        named: undefined,
        modelName: name.value,
        label: `source ${name.value}, rank ${rank}`,
      };
    default:
      throw missing();
  }
}

function checkName(field: string, value: string): void {
  const bytes = Buffer.byteLength(value);
  if (bytes > NAME_MAX_BYTES) {
    throw new WeightlineError("InvalidArgument", `${field} has ${bytes} bytes; at most ${NAME_MAX_BYTES} are taken`, {
      field,
      value: `${bytes} bytes`,
      limit: `${NAME_MAX_BYTES} bytes`,
    });
  }
}

function timeoutOf(seconds: number): number {
  if (!Number.isFinite(seconds) || seconds < 0 || seconds > TIMEOUT_MAX_S) {
    throw new WeightlineError("InvalidArgument", `timeout_s ${seconds} is not within 0 and ${TIMEOUT_MAX_S}`, {
      field: "timeout_s",
      value: String(seconds),
      limit: `0 to ${TIMEOUT_MAX_S}`,
    });
  }
  // Whole: a timer takes no other.
  return Math.ceil((seconds === 0 ? DEFAULT_TIMEOUT_S : seconds) * 1000);
}

/** AgentService: what pods and operators on this node ask. */
export function createLocalService(options: LocalServiceOptions): ServiceRoute {
  const { registry, acquirer, loads, loader, evictor, leases, transfers } = options;

  const refuseWhileDraining = () => {
    if (options.draining()) {
      throw new WeightlineError("Unavailable", "this node is draining", { field: "node", wayOut: "use another node" });
    }
  };

  const heldMessage = (lease: Lease, caller: Caller, outcome: AcquireOutcome): MessageInitShape<typeof HeldSchema> => {
    const start = performance.now();
    const { holding } = lease;
    const ticket = { ticketId: randomBytes(16), secret: randomBytes(32) };
    const { layout } = holding;
    if (layout === undefined) {
      throw new WeightlineError("Internal", `holding ${holding.id} has no layout`);
    }
    const paths = ["layout", ...segmentPaths(layout)];
    native.grantDescriptors(options.descriptors(), {
      ...ticket,
      pid: caller.owner.peer.pid,
      ttlMs: TICKET_TTL_MS,
      holdingId: holding.id,
      paths,
    });
    options.onAttach((performance.now() - start) / 1000);
    return {
      leaseId: lease.id,
      holding: toMessage(holding),
      ticket: { id: ticket.ticketId, secret: ticket.secret, socket: options.descriptorSocket, ttlMs: TICKET_TTL_MS },
      outcome,
      descriptors: paths.length,
    };
  };

  const evictable = (wanted: Wanted): Holding[] => {
    const found =
      wanted.named === undefined ? registry.withSource(wanted.sourceId) : registry.named(wanted.sourceId, wanted.rank);
    const there = found.filter(({ record }) => record.state !== "evicting");
    if (there.length === 0) {
      throw new WeightlineError("NotFound", `this node holds no ${wanted.label}`, {
        field: "model_name",
        value: wanted.modelName,
        near: registry.near(wanted.modelName),
        wayOut: "see mxctl nodes",
      });
    }
    return there;
  };

  return route(AgentService, {
    async *acquire({ wanted: message, timeoutS }, context) {
      const caller = callerOf(context);
      refuseWhileDraining();
      const started = performance.now();
      const timeoutMs = timeoutOf(timeoutS);
      const wanted = readWanted(message);
      const timeout = AbortSignal.timeout(timeoutMs);
      const signal = AbortSignal.any([context.signal, timeout]);
      try {
        const { held, stream } = progressStream(acquirer, wanted, signal);
        for await (const progress of stream) {
          yield { event: { case: "progress", value: progress } };
        }
        const { holding, outcome } = await held;
        const lease = leases.grant(holding, caller.owner);
        if (context.signal.aborted) {
          leases.release(lease.id, caller.owner);
          return;
        }
        const value = heldMessage(lease, caller, outcome);
        options.onAcquire(outcome, (performance.now() - started) / 1000);
        yield { event: { case: "held", value } };
      } catch (error) {
        const known = timeout.aborted
          ? new WeightlineError(
              "DeadlineExceeded",
              `${wanted.label} did not come within ${timeoutMs / 1000} s; its fill goes on`,
              {
                field: "timeout_s",
                value: String(timeoutMs / 1000),
                wayOut: "acquire it again to go on waiting",
                cause: error,
              },
            )
          : toWeightlineError(error);
        options.onAcquire(known.code, (performance.now() - started) / 1000);
        throw known;
      }
    },
    attach({ leaseId }, context) {
      const caller = callerOf(context);
      const lease = leases.find(leaseId);
      if (lease === undefined || lease.owner?.peer.pid !== caller.owner.peer.pid) {
        throw new WeightlineError("NotFound", `this process has no lease ${leaseId}`, {
          field: "lease_id",
          value: leaseId,
          wayOut: "acquire it again",
        });
      }
      return { held: heldMessage(lease, caller, "held") };
    },
    release: ({ leaseId }, context) => ({ released: leases.release(leaseId, callerOf(context).owner) }),
    status: () => ({ ...options.status(), holdings: registry.all().map(toMessage), leases: leases.count() }),
    transfers: () => ({ transfers: transfers.list() }),
    async *load({ path, modelName, revision, rank, replace }, context) {
      requireOperator(callerOf(context), "load");
      refuseWhileDraining();
      checkName("model_name", modelName);
      checkName("revision", revision);
      if (modelName === "" || path === "") {
        const field = path === "" ? "path" : "model_name";
        throw new WeightlineError("InvalidArgument", `${field} is required`, { field });
      }
      const fill = loads.start(`${path}\n${modelName}\n${revision}\n${rank}`, (report, signal) =>
        loader.load({ path, modelName, revision, rank, replace }, report, signal),
      );
      for await (const progress of watchFill(fill, context.signal)) {
        yield { event: { case: "progress", value: progress } };
      }
      context.signal.throwIfAborted();
      const { holding, ...facts } = await fill.done;
      yield { event: { case: "loaded", value: { ...facts, holding: toMessage(holding) } } };
    },
    async *pull({ wanted: message }, context) {
      requireOperator(callerOf(context), "pull");
      refuseWhileDraining();
      const { held, stream } = progressStream(acquirer, readWanted(message), context.signal);
      for await (const progress of stream) {
        yield { event: { case: "progress", value: progress } };
      }
      const { holding, outcome } = await held;
      yield { event: { case: "pulled", value: { holding: toMessage(holding), outcome } } };
    },
    async evict({ wanted: message, force }, context) {
      requireOperator(callerOf(context), "evict");
      const holdings = evictable(readWanted(message));
      const used = holdings.filter((holding) => holding.leases > 0);
      const [first] = used;
      if (first !== undefined && !force) {
        const pids = leases.pidsOf(first);
        throw new WeightlineError(
          "InUse",
          `${modelNameOf(first)} has ${first.leases} lease(s)${pids.length > 0 ? ` of process ${pids.join(", ")}` : ""}`,
          {
            field: "--force",
            value: "not given",
            wayOut: "let them end, or give --force: the memory returns when the last user leaves",
          },
        );
      }
      // With a lease on it nothing is freed now: waiting for it would only make the caller wait.
      const results = await Promise.all(
        holdings.map(async (holding) => ({
          holding,
          charge: holding.charge,
          ...(await evictor.evict(holding, holding.leases > 0 ? 0 : EVICT_PATIENCE_MS)),
        })),
      );
      return {
        holdingIds: holdings.map(({ id }) => id),
        freedBytes: BigInt(Math.round(results.reduce((sum, { freedBytes }) => sum + freedBytes, 0))),
        pendingBytes: BigInt(Math.round(results.reduce((sum, { pending, charge }) => sum + (pending ? charge : 0), 0))),
      };
    },
    drain(_request, context) {
      requireOperator(callerOf(context), "drain");
      options.drain();
      return {};
    },
  });
}
