import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import { AgentService, type HeldSchema, type StatusResponseSchema } from "@weightline/proto/local";
import { fromRpcError, route, type ServiceRoute, WeightlineError } from "@weightline/runtime";
import type { Doctor } from "../doctor/doctor.ts";
import type { AcquireOutcome, Acquirer } from "../fills/acquirer.ts";
import type { FillBoard } from "../fills/fill-board.ts";
import type { Loaded, Loader } from "../fills/load.ts";
import { acquireStream, watchFill } from "../fills/progress-stream.ts";
import type { Wanted } from "../fills/wanted.ts";
import type { Evictor } from "../holdings/evictor.ts";
import { type Holding, modelNameOf, toMessage } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import { segmentPaths } from "../layout-reader.ts";
import type { Lease, LeaseTable } from "../leases/lease-table.ts";
import type { TicketOffice } from "../leases/ticket-office.ts";
import type { OfferTable } from "../offers/offer-table.ts";
import type { TransferLog } from "../transfers/transfer-log.ts";
import { type Caller, callerKey, requireOperator } from "./caller.ts";
import { checkName, readIdentity, readTimeout, readWanted } from "./request-fields.ts";

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
  offers: OfferTable;
  tickets: TicketOffice;
  descriptorSocket: string;
  status: () => StatusFacts;
  draining: () => boolean;
  drain: () => void;
  doctor: Doctor;
  onAcquire: (outcome: string, seconds: number) => void;
  onAttach: (seconds: number) => void;
}

/** How long an evict waits for memory to be free before it says that it is pending. */
const EVICT_PATIENCE_MS = 5000;

function callerOf(context: HandlerContext): Caller {
  const caller = context.values.get(callerKey);
  if (caller === undefined) {
    throw new WeightlineError("PermissionDenied", "the calling process is not known any more", {
      wayOut: "connect again",
    });
  }
  return caller;
}

/** AgentService: what pods and operators on this node ask. */
export function createLocalService(options: LocalServiceOptions): ServiceRoute {
  const { registry, acquirer, loads, loader, evictor, leases, transfers } = options;

  const refuseWhileDraining = () => {
    if (options.draining()) {
      throw new WeightlineError("Unavailable", "this node is draining", { field: "node", wayOut: "use another node" });
    }
  };

  const heldMessage = (
    lease: Lease,
    caller: Caller,
    outcome: AcquireOutcome | "offered",
  ): MessageInitShape<typeof HeldSchema> => {
    const start = performance.now();
    const { holding } = lease;
    const { layout } = holding;
    if (layout === undefined) {
      throw new WeightlineError("Internal", `holding ${holding.id} has no layout`);
    }
    const paths = ["layout", ...segmentPaths(layout)];
    const ticket = options.tickets.issue({ pid: caller.owner.peer.pid, group: caller.group.key }, holding.id, paths);
    options.onAttach((performance.now() - start) / 1000);
    return {
      leaseId: lease.id,
      holding: toMessage(holding),
      ticket,
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
      const timeoutMs = readTimeout("timeout_s", timeoutS);
      const wanted = readWanted(message);
      let isLate = false;
      let timer: NodeJS.Timeout | undefined;
      const waiting = () => {
        // Not AbortSignal.timeout, which keeps what it holds until it fires, however soon the call ends.
        const timeout = new AbortController();
        timer = setTimeout(() => {
          isLate = true;
          timeout.abort();
        }, timeoutMs);
        return AbortSignal.any([context.signal, caller.closed, timeout.signal]);
      };
      let undelivered: Lease | undefined;
      try {
        const stream = acquireStream(acquirer, wanted, waiting, caller.group.beginFill);
        let step = await stream.next();
        for (; step.done !== true; step = await stream.next()) {
          yield { event: { case: "progress", value: step.value } };
        }
        const { holding, outcome } = step.value;
        if (context.signal.aborted || caller.closed.aborted) {
          return;
        }
        undelivered = leases.grant(holding, caller.owner, caller.group.key);
        const value = heldMessage(undelivered, caller, outcome);
        options.onAcquire(outcome, (performance.now() - started) / 1000);
        yield { event: { case: "held", value } };
        undelivered = undefined;
      } catch (error) {
        const known = isLate
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
          : // A deadline in the request's own header ends it with an error of the RPC's.
            fromRpcError(error);
        options.onAcquire(known.code, (performance.now() - started) / 1000);
        throw known;
      } finally {
        clearTimeout(timer);
        if (undelivered !== undefined) {
          leases.release(undelivered.id, caller.owner);
        }
      }
    },
    attach({ leaseId }, context) {
      const caller = callerOf(context);
      const lease = leases.find(leaseId);
      if (lease === undefined || lease.owner !== caller.owner) {
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
    transfers: ({ last }) => ({ transfers: transfers.list(last) }),
    async *load({ path, modelName, revision, rank, replace }, context) {
      const caller = callerOf(context);
      requireOperator(caller, "load");
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
      const signal = AbortSignal.any([context.signal, caller.closed]);
      // Whoever gives a load expects its Ctrl-C to end it; others who asked for the same keep it.
      const leave = fill.join();
      signal.addEventListener("abort", leave, { once: true });
      try {
        for await (const progress of watchFill(fill, signal)) {
          yield { event: { case: "progress", value: progress } };
        }
        signal.throwIfAborted();
        const { holding, ...facts } = await fill.done;
        yield { event: { case: "loaded", value: { ...facts, holding: toMessage(holding) } } };
      } finally {
        leave();
      }
    },
    async *pull({ wanted: message }, context) {
      const caller = callerOf(context);
      requireOperator(caller, "pull");
      refuseWhileDraining();
      const signal = AbortSignal.any([context.signal, caller.closed]);
      const stream = acquireStream(acquirer, readWanted(message), () => signal, caller.group.beginFill);
      let step = await stream.next();
      for (; step.done !== true; step = await stream.next()) {
        yield { event: { case: "progress", value: step.value } };
      }
      const { holding, outcome } = step.value;
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
    offer({ identity, rank, alone, stallTimeoutS }, context) {
      const { owner, group } = callerOf(context);
      refuseWhileDraining();
      const named = readIdentity(identity, rank);
      const stallMs = readTimeout("stall_timeout_s", stallTimeoutS);
      const { offerId, ticket } = options.offers.open({ named, owner, group: group.key, alone, stallMs });
      const { ticketId, secret } = ticket;
      return { offerId, ticket: { id: ticketId, secret, socket: options.descriptorSocket, ttlMs: stallMs } };
    },
    async sealOffer({ offerId }, context) {
      const caller = callerOf(context);
      const holding = await options.offers.seal(offerId, caller.owner);
      const lease = leases.grant(holding, caller.owner, caller.group.key);
      try {
        caller.closed.throwIfAborted();
        return { held: heldMessage(lease, caller, "offered") };
      } catch (error) {
        leases.release(lease.id, caller.owner);
        throw error;
      }
    },
    async withdrawOffer({ offerId }, context) {
      return { withdrawn: await options.offers.withdraw(offerId, callerOf(context).owner) };
    },
    drain(_request, context) {
      requireOperator(callerOf(context), "drain");
      options.drain();
      return {};
    },
    async doctor(_request, context) {
      const caller = callerOf(context);
      // It dials every node and names the store's files and peers: nothing of that is a pod's affair.
      requireOperator(caller, "doctor");
      return { checks: await options.doctor.examine(caller.owner.peer.source) };
    },
  });
}
