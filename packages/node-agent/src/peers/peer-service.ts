import { randomBytes } from "node:crypto";
import type { HandlerContext } from "@connectrpc/connect";
import { PeerService } from "@weightline/proto/peer";
import { type DigestAlgorithm, native } from "@weightline/rdma-native";
import {
  createBoundedLog,
  formatAddress,
  isWildcard,
  type Logger,
  parseAddress,
  route,
  type ServiceRoute,
  WeightlineError,
} from "@weightline/runtime";
import type { Acquirer } from "../fills/acquirer.ts";
import { acquireStream } from "../fills/progress-stream.ts";
import { wantedFrom } from "../fills/wanted.ts";
import { type Holding, toMessage } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { MoverProcess } from "../mover/mover-process.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import type { TransferLog } from "../transfers/transfer-log.ts";

export interface PeerServiceOptions {
  node: string;
  store: StoreFolder;
  registry: HoldingRegistry;
  mover: MoverProcess;
  acquirer: Acquirer;
  transfers: TransferLog;
  log: Logger;
  /** What peers dial. */
  host: string;
  algorithm: DigestAlgorithm;
  /** Why this node opens nothing and names nothing now, like "is draining"; "" when it does. */
  closed: () => string;
  drain: () => void;
  /** Proves chunks that a child refused; true when they are wrong here. */
  checkDamage: (holding: Holding, chunks: readonly bigint[]) => Promise<boolean>;
  /** Throws PermissionDenied when the caller is another than the child that it says it is. */
  checkNode: (context: HandlerContext, child: string) => void;
}

/** architecture.md: a ticket lives so long. */
const TICKET_TTL_MS = 10_000;
const STREAMS_MAX = 4;
const DAMAGE_CHUNKS_MAX = 1024;
/** A child's name is its own text. */
const NAME_MAX = 253;

/** host:port of the mover as peers dial it: its port, this node's address. */
export function moverEndpoint(moverAddress: string, host: string): string {
  const bound = parseAddress(moverAddress, "mover address");
  return formatAddress({ host: isWildcard(bound.host) ? host : bound.host, port: bound.port });
}

/** PeerService: agent to agent, and for the control plane. */
export function createPeerService(options: PeerServiceOptions): ServiceRoute {
  const { node, store, registry, mover, acquirer, transfers } = options;
  const bounded = createBoundedLog(options.log);

  const refuseWhileClosed = () => {
    const why = options.closed();
    if (why !== "") {
      throw new WeightlineError("Unavailable", `node ${node} ${why}`, {
        field: "node",
        value: node,
        wayOut: "ask another holder",
      });
    }
  };

  const servable = (id: string): Holding => {
    const holding = registry.get(id);
    const state = holding?.record.state;
    if (
      holding === undefined ||
      holding.layout === undefined ||
      holding.suspect ||
      (state !== "complete" && state !== "filling")
    ) {
      throw new WeightlineError("NotFound", `node ${node} serves no holding ${id}`, {
        field: "holding_id",
        value: id,
        wayOut: "look it up again",
      });
    }
    return holding;
  };

  /** None while the mover is being started again. */
  const endpoints = () =>
    mover.address() === "" ? [] : [{ transport: "stream", address: moverEndpoint(mover.address(), options.host) }];

  const checkVersions = (least: number, most: number) => {
    const { minStreamVersion, maxStreamVersion } = native.buildInfo();
    if (least > maxStreamVersion || most < minStreamVersion) {
      throw new WeightlineError(
        "Refused",
        `node ${node} speaks stream versions ${minStreamVersion} to ${maxStreamVersion}, the child ${least} to ${most}`,
        {
          field: "max_version",
          value: String(most),
          limit: `${minStreamVersion} to ${maxStreamVersion}`,
          wayOut: "upgrade the older agent",
        },
      );
    }
    return Math.min(maxStreamVersion, most);
  };

  const checkAlgorithm = (wanted: string, holding: Holding) => {
    if (wanted === "sha-256" && holding.layout?.algorithm !== "sha-256") {
      throw new WeightlineError(
        "Refused",
        `the child asks for sha-256, holding ${holding.id} was digested with ${holding.layout?.algorithm}`,
        {
          field: "--digest",
          value: holding.layout?.algorithm ?? "",
          limit: "sha-256",
          wayOut: "load it on a node with --digest sha-256",
        },
      );
    }
  };

  return route(PeerService, {
    find({ subject }) {
      const found =
        subject.case === "source"
          ? registry.named(subject.value.sourceId, subject.value.rank)
          : subject.case === "objectDigest"
            ? registry.withDigest(Buffer.from(subject.value).toString("hex"))
            : [];
      const holdings =
        options.closed() === "" ? found.filter(({ layout, suspect }) => layout !== undefined && !suspect) : [];
      return { node, epoch: store.epoch(), holdings: holdings.map(toMessage), endpoints: endpoints() };
    },
    async open({ holdingId, child, streams, minVersion, maxVersion, algorithm, epoch }, context) {
      options.checkNode(context, child);
      const { signal } = context;
      refuseWhileClosed();
      if (!mover.running()) {
        throw new WeightlineError("Unavailable", `node ${node}: ${mover.trouble()}`, {
          field: "mover",
          value: node,
          wayOut: "ask another holder",
        });
      }
      if (epoch !== 0n && epoch !== store.epoch()) {
        throw new WeightlineError("Refused", `node ${node} is at epoch ${store.epoch()}, the child means ${epoch}`, {
          field: "epoch",
          value: String(epoch),
          limit: String(store.epoch()),
          wayOut: "look it up again",
        });
      }
      const holding = servable(holdingId);
      if (holding.record.state === "filling" && holding.parent !== "" && holding.parent === child) {
        throw new WeightlineError("Refused", `node ${node} fills this holding from ${child} itself`, {
          field: "child",
          value: child,
          wayOut: "ask another holder",
        });
      }
      const version = checkVersions(minVersion, maxVersion);
      checkAlgorithm(algorithm, holding);
      const tickets = Array.from({ length: Math.min(STREAMS_MAX, Math.max(1, streams)) }, () => ({
        id: randomBytes(16),
        secret: randomBytes(32),
      }));
      for (const ticket of tickets) {
        await mover.order(
          { kind: "grant", holdingId, ticket, ttlMs: TICKET_TTL_MS, child: child.slice(0, NAME_MAX) },
          { signal },
        );
      }
      holding.lastUsedAt = performance.now();
      return {
        endpoints: endpoints(),
        tickets,
        ticketTtlMs: TICKET_TTL_MS,
        holding: toMessage(holding),
        epoch: store.epoch(),
        version,
      };
    },
    async reportDamage({ holdingId, chunks, child }, context) {
      options.checkNode(context, child);
      const holding = servable(holdingId);
      if (chunks.length === 0 || chunks.length > DAMAGE_CHUNKS_MAX) {
        throw new WeightlineError(
          "InvalidArgument",
          `a damage report names 1 to ${DAMAGE_CHUNKS_MAX} chunks, not ${chunks.length}`,
          { field: "chunks", value: String(chunks.length), limit: String(DAMAGE_CHUNKS_MAX) },
        );
      }
      bounded(
        "warn",
        { event: "damage-reported", holding: holdingId, child: child.slice(0, NAME_MAX), chunks: chunks.length },
        "a child refused a chunk",
      );
      return { confirmed: await options.checkDamage(holding, chunks) };
    },
    async *fill({ identity, rank }, { signal }) {
      refuseWhileClosed();
      if (identity === undefined || identity.modelName === "") {
        throw new WeightlineError("InvalidArgument", "identity.model_name is required", {
          field: "identity.model_name",
        });
      }
      const wanted = wantedFrom({ identity, rank });
      const stream = acquireStream(acquirer, wanted, () => signal);
      let step = await stream.next();
      for (; step.done !== true; step = await stream.next()) {
        yield { progress: step.value };
      }
      yield { holding: toMessage(step.value.holding) };
    },
    transfers: ({ last }) => ({ transfers: transfers.list(last) }),
    drain() {
      options.drain();
      return {};
    },
  });
}
