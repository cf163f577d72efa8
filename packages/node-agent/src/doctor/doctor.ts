import { release, totalmem } from "node:os";
import { NodeState } from "@weightline/proto/common";
import { NodeService } from "@weightline/proto/node";
import type { PeerProcess, ProtectionLevel } from "@weightline/rdma-native";
import { fromRpcError, type GrpcChannel } from "@weightline/runtime";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { MemoryAccount } from "../holdings/memory-account.ts";
import { ownCgroupMemoryLimit } from "../memory-limit.ts";
import type { MoverProcess } from "../mover/mover-process.ts";
import type { DialPeer } from "../peers/peer-security.ts";
import { NewerRecordError, readRecord } from "../store/holding-record.ts";
import { mapInSlices } from "../store/in-slices.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import type { Check } from "./check.ts";
import { type ClockFacts, clockChecks } from "./clock.ts";
import { CAP_IPC_LOCK, hasCapability, kernelChecks } from "./kernel.ts";
import { limitChecks } from "./limits.ts";
import { memoryChecks } from "./memory.ts";
import { moverCheck } from "./mover.ts";
import { findNixl } from "./nixl-places.ts";
import { controlPlaneCheck, type PeerFacts, peerChecks } from "./peers.ts";
import { capabilities, limitsOf, namespaces, peerFacts, socketFacts } from "./probe.ts";
import { processCheck } from "./processes.ts";
import { securityCheck } from "./security.ts";
import { socketChecks } from "./sockets.ts";
import { storeChecks } from "./store.ts";

export interface DoctorOptions {
  node: string;
  channel: GrpcChannel;
  /** As it was given. */
  controlPlane: string;
  /** "connected", or what is wrong. */
  announces: () => string;
  account: MemoryAccount;
  store: StoreFolder;
  registry: HoldingRegistry;
  mover: MoverProcess;
  protection: ProtectionLevel;
  socket: string;
  descriptorSocket: string;
  dial: DialPeer;
  /** Unix ms; undefined: security is off. */
  certificateEndsMs: () => number | undefined;
  /** For MX_NIXL_LIBRARY, NIXL_PREFIX and what Kubernetes sets. */
  env: Readonly<Record<string, string | undefined>>;
}

/** Looks at everything that this node's work depends on, and changes nothing. */
export interface Doctor {
  /** `callerSource`: how the caller's own process was recognised. Callers at the same time share one examination. */
  examine(callerSource: PeerProcess["source"]): Promise<Check[]>;
}

/** Nodes that are dialled, and how many at once. */
const PEERS_MAX = 64;
const PEERS_AT_ONCE = 8;
const CONTROL_PLANE_TIMEOUT_MS = 3000;

export function createDoctor(options: DoctorOptions): Doctor {
  const started = { wallMs: Date.now(), monotonicMs: performance.now() };
  let running: Promise<Check[]> | undefined;

  const memory = async () => {
    const { totalBytes, freeBytes } = await options.store.space();
    return memoryChecks({
      store: options.store.path,
      limit: options.account.limitBytes,
      used: options.account.usedBytes(),
      tmpfsTotal: totalBytes,
      tmpfsFree: freeBytes,
      ram: totalmem(),
      cgroupLimit: ownCgroupMemoryLimit(),
    });
  };

  const limits = () => {
    const { path, places } = findNixl(options.env);
    return limitChecks({
      agent: limitsOf(process.pid),
      mover: limitsOf(options.mover.pid()),
      ipcLock: hasCapability(capabilities(), CAP_IPC_LOCK),
      memoryLimitBytes: options.account.limitBytes,
      nixl: path,
      nixlPlaces: places,
    });
  };

  const store = async () => {
    const { holdingIds, foreign } = await options.store.list();
    const all = options.registry.all();
    const strangers = holdingIds.filter((id) => options.registry.get(id) === undefined);
    const newer = await mapInSlices(strangers, (id) => {
      try {
        readRecord(options.store.holdingFolder(id));
        return [];
      } catch (error) {
        return error instanceof NewerRecordError ? [id] : [];
      }
    });
    const inState = (state: string) => all.filter(({ record }) => record.state === state);
    return storeChecks({
      path: options.store.path,
      foreign,
      damaged: inState("damaged").map(({ id }) => id),
      newer: newer.flat(),
      complete: inState("complete").length,
      filling: inState("filling").length,
      evicting: inState("evicting").length,
    });
  };

  /** Control plane, clocks and peers: all from one answer. */
  const network = async (): Promise<Check[]> => {
    const passed = () => ({
      wallPassedMs: Date.now() - started.wallMs,
      monotonicPassedMs: performance.now() - started.monotonicMs,
    });
    const about = (failure: string | undefined) =>
      controlPlaneCheck({ address: options.controlPlane, announces: options.announces(), failure });
    const askedAt = { wall: Date.now(), monotonic: performance.now() };
    try {
      const { nodes, nowMs } = await options.channel
        .client(NodeService)
        .listNodes({}, { timeoutMs: CONTROL_PLANE_TIMEOUT_MS });
      const roundTripMs = performance.now() - askedAt.monotonic;
      const reading: ClockFacts["controlPlane"] =
        nowMs === 0n ? undefined : { theirsMs: Number(nowMs), oursMs: askedAt.wall + roundTripMs / 2, roundTripMs };
      const others = nodes.filter(({ name, state }) => name !== options.node && state !== NodeState.LOST);
      const peers = await inGroups(others.slice(0, PEERS_MAX), ({ name, address }) =>
        peerFacts(name, address, options.dial),
      );
      return [
        about(undefined),
        ...peerChecks(peers, others.length - peers.length),
        ...clockChecks({ controlPlane: reading, ...passed() }),
      ];
    } catch (error) {
      return [about(fromRpcError(error).message), ...clockChecks({ controlPlane: undefined, ...passed() })];
    }
  };

  const examine = async (callerSource: PeerProcess["source"]): Promise<Check[]> => {
    const { mover, env } = options;
    const [memoryResults, storeResults, networkResults] = await Promise.all([memory(), store(), network()]);
    return [
      ...kernelChecks({
        release: release(),
        capabilities: capabilities(),
        protection: options.protection,
        callerSource,
      }),
      processCheck({ ...namespaces(), inKubernetes: env["KUBERNETES_SERVICE_HOST"] !== undefined }),
      ...limits(),
      ...memoryResults,
      ...socketChecks(socketFacts(options.socket), socketFacts(options.descriptorSocket)),
      moverCheck({
        running: mover.running(),
        pid: mover.pid(),
        restarts: mover.restarts(),
        agentSeconds: (performance.now() - started.monotonicMs) / 1000,
      }),
      ...storeResults,
      ...networkResults,
      securityCheck(options.certificateEndsMs()),
    ];
  };

  return {
    examine(callerSource) {
      running ??= examine(callerSource).finally(() => {
        running = undefined;
      });
      return running;
    },
  };
}

async function inGroups<Item>(items: readonly Item[], act: (item: Item) => Promise<PeerFacts>): Promise<PeerFacts[]> {
  const results: PeerFacts[] = [];
  for (let i = 0; i < items.length; i += PEERS_AT_ONCE) {
    results.push(...(await Promise.all(items.slice(i, i + PEERS_AT_ONCE).map(act))));
  }
  return results;
}
