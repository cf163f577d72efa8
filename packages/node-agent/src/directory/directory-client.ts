import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import type { NodeState } from "@weightline/proto/common";
import { AnnounceRequestSchema, AnnounceVerdict, type Holder, NodeService } from "@weightline/proto/node";
import { createBoundedLog, fromRpcError, type GrpcChannel, type Logger, WeightlineError } from "@weightline/runtime";
import type { Wanted } from "../fills/wanted.ts";
import { toMessage } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { MemoryAccount } from "../holdings/memory-account.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import { createAnnouncer } from "./announcer.ts";
import { createSkewWarning } from "./skew-warning.ts";

/** A node that may hold what is wanted. */
export type KnownHolder = Pick<Holder, "node" | "address" | "epoch">;

/** The control plane as the agent uses it: announced to, asked, and done without when it is away. */
export interface DirectoryClient {
  /** Holders by the directory; those that it named before when it does not answer within a second. */
  lookup(wanted: Wanted, signal: AbortSignal): Promise<KnownHolder[]>;
  /** Names close to one that nobody holds; none when the directory is away. */
  near(wanted: Wanted): Promise<string[]>;
  /** Reasons against readiness: another node has this name. */
  notReady(): string[];
  /** "connected", or what is wrong. */
  state(): string;
  start(): void;
  /** Tells the directory that this node is gone, if it answers in time. */
  stop(): Promise<void>;
}

export interface DirectoryClientOptions {
  channel: GrpcChannel;
  node: string;
  store: StoreFolder;
  registry: HoldingRegistry;
  account: MemoryAccount;
  address: () => string;
  nodeState: () => NodeState;
  intervalMs: number;
  version: string;
  /** How descriptors given to pods are protected. */
  protection: string;
  log: Logger;
}

/** promises.md R3: a pod waits at most a second longer for a control plane that is away. */
const LOOKUP_TIMEOUT_MS = 1000;
const LEAVE_TIMEOUT_MS = 500;
/** Changes that come together are announced together. */
const DEBOUNCE_MS = 30;
const TTL_INTERVALS = 3;
const RETRY_MAX_MS = 5000;
/** Looked-up names that are remembered for a time without the directory. */
const REMEMBERED_MAX = 1000;

export function createDirectoryClient(options: DirectoryClientOptions): DirectoryClient {
  const { channel, registry, log, store } = options;
  const client = channel.client(NodeService);
  const announcer = createAnnouncer(client);
  const bounded = createBoundedLog(log);
  const warnOfSkew = createSkewWarning(log);
  const bootId = randomUUID();
  const remembered = new Map<string, KnownHolder[]>();
  const near = new Map<string, string[]>();
  let sequence = 0n;
  let revision = 1n;
  let acceptedRevision = 0n;
  let state = "not asked yet";
  let takenBy = "";
  let timer: NodeJS.Timeout | undefined;
  let running: Promise<void> | undefined;
  let stopped = false;
  let failures = 0;

  const request = () => {
    sequence += 1n;
    const withHoldings = acceptedRevision !== revision;
    return create(AnnounceRequestSchema, {
      node: options.node,
      epoch: store.epoch(),
      sequence,
      bootId,
      address: options.address(),
      state: options.nodeState(),
      memory: { limit: BigInt(options.account.limitBytes), used: BigInt(Math.round(options.account.usedBytes())) },
      holdingsRevision: revision,
      ttlMs: options.intervalMs * TTL_INTERVALS,
      version: options.version,
      protection: options.protection,
      storeId: store.storeId,
      ...(withHoldings
        ? {
            holdings: {
              holdings: registry
                .all()
                .filter(({ record }) => record.identities.length > 0)
                .map(toMessage),
            },
          }
        : {}),
    });
  };

  const askWithClock = async (message: ReturnType<typeof request>) => {
    const startedAt = performance.now();
    const reply = await announcer.announce(message);
    const roundTripMs = performance.now() - startedAt;
    if (reply.nowMs !== 0n) {
      warnOfSkew({ theirsMs: Number(reply.nowMs), oursMs: Date.now() - roundTripMs / 2, roundTripMs });
    }
    return reply;
  };

  /** One announce. True: announce again at once. */
  const announceOnce = async (): Promise<boolean> => {
    const message = request();
    const reply = await askWithClock(message);
    switch (reply.verdict) {
      case AnnounceVerdict.ACCEPTED:
        acceptedRevision = message.holdingsRevision;
        takenBy = "";
        return acceptedRevision !== revision;
      case AnnounceVerdict.RESEND:
        acceptedRevision = 0n;
        return true;
      case AnnounceVerdict.STALE:
        log.warn(
          { event: "epoch-raised", known_epoch: String(reply.knownEpoch) },
          "the directory knows a higher epoch; going above it",
        );
        await store.raiseEpoch(reply.knownEpoch);
        acceptedRevision = 0n;
        return true;
      case AnnounceVerdict.NAME_TAKEN:
        if (takenBy === "") {
          log.error({ event: "name-taken", taken_by: reply.takenBy }, `another live node is called ${options.node}`);
        }
        takenBy = reply.takenBy;
        return false;
      default:
        throw new WeightlineError("Refused", `the control plane answered an announce with verdict ${reply.verdict}`);
    }
  };

  const schedule = (delayMs: number) => {
    clearTimeout(timer);
    if (!stopped) {
      timer = setTimeout(announce, delayMs).unref();
    }
  };

  const announce = (): void => {
    if (running !== undefined) {
      return;
    }
    running = (async () => {
      let delayMs = options.intervalMs;
      try {
        for (let again = true, rounds = 0; again && rounds < 5; rounds++) {
          again = await announceOnce();
        }
        if (state !== "connected") {
          log.info({ event: "control-plane-back" }, "the control plane answers");
        }
        state = "connected";
        failures = 0;
      } catch (error) {
        const known = fromRpcError(error);
        if (failures === 0) {
          log.warn(
            { event: "control-plane-away", error: known.message },
            "the control plane does not answer; what is held here is served, and it is tried again",
          );
        }
        state = known.message;
        failures += 1;
        acceptedRevision = 0n;
        delayMs = Math.min(options.intervalMs, RETRY_MAX_MS, 200 * 2 ** Math.min(failures, 6));
      }
      running = undefined;
      schedule(delayMs);
    })();
  };

  registry.onChange(() => {
    revision += 1n;
    // While it is away, its own retries carry the change.
    if (state === "connected") {
      schedule(DEBOUNCE_MS);
    }
  });

  const remember = (key: string, holders: KnownHolder[]) => {
    remembered.delete(key);
    remembered.set(key, holders);
    const oldest = remembered.keys().next().value;
    if (remembered.size > REMEMBERED_MAX && oldest !== undefined) {
      remembered.delete(oldest);
    }
  };

  return {
    async lookup({ sourceId, rank, label, modelName }, signal) {
      const key = `${sourceId}/${rank}`;
      try {
        const reply = await client.lookup({ sourceId, rank, modelName }, { timeoutMs: LOOKUP_TIMEOUT_MS, signal });
        near.set(key, reply.near);
        if (reply.holders.length > 0) {
          remember(key, reply.holders);
        }
        return reply.holders;
      } catch (error) {
        signal.throwIfAborted();
        const holders = remembered.get(key);
        const known = fromRpcError(error);
        if (holders === undefined && known.code === "Refused") {
          throw new WeightlineError("Refused", `the control plane cannot look up ${label}: ${known.message}`, {
            field: "--control-plane",
            wayOut: "upgrade the control plane, or load the model on this node",
            cause: error,
          });
        }
        if (holders === undefined) {
          throw new WeightlineError(
            "Unavailable",
            `the control plane does not answer, and no holder of ${label} is remembered here: ${known.message}`,
            {
              field: "--control-plane",
              wayOut: "start the control plane, or load the model on this node",
              cause: error,
            },
          );
        }
        bounded(
          "warn",
          { event: "directory-remembered", source_id: sourceId, nodes: holders.map(({ node }) => node).slice(0, 20) },
          "the control plane does not answer: holders are those that it named before",
        );
        return holders;
      }
    },
    near: async ({ sourceId, rank }) => near.get(`${sourceId}/${rank}`) ?? [],
    notReady: () => (takenBy === "" ? [] : [`another live node is called ${options.node}: ${takenBy}`]),
    state: () => state,
    start: announce,
    async stop() {
      stopped = true;
      clearTimeout(timer);
      await running;
      announcer.close();
      if (state === "connected") {
        await client
          .leave({ node: options.node, epoch: store.epoch(), bootId }, { timeoutMs: LEAVE_TIMEOUT_MS })
          .catch(() => undefined);
      }
    },
  };
}
