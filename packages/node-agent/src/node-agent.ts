import { readFileSync } from "node:fs";
import { HoldingState, NodeState } from "@weightline/proto/common";
import { WorkerService } from "@weightline/proto/p2p";
import { PeerService } from "@weightline/proto/peer";
import { type DescriptorServerHandle, type MoverReport, native } from "@weightline/rdma-native";
import {
  createBoundedLog,
  createFailureLog,
  createGrpcChannel,
  createGrpcServer,
  createHealthStatus,
  createLifecycle,
  createLimitRecord,
  createOperationsServer,
  formatAddress,
  type Logger,
  observeCertificate,
  parseAddresses,
  toWeightlineError,
  WeightlineError,
  withReflection,
} from "@weightline/runtime";
import { type AgentConfiguration, DESCRIPTOR_SOCKET_SUFFIX } from "./configuration.ts";
import { createDirectoryClient, type DirectoryClient } from "./directory/directory-client.ts";
import { createDoctor } from "./doctor/doctor.ts";
import { createAcquirer } from "./fills/acquirer.ts";
import { matches, targetOf } from "./fills/candidates.ts";
import { createFillBoard } from "./fills/fill-board.ts";
import { createLoader, type Loaded } from "./fills/load.ts";
import { createPuller } from "./fills/pull.ts";
import { wantedFrom } from "./fills/wanted.ts";
import { createEvictor } from "./holdings/evictor.ts";
import { type Holding, keyOf, modelNameOf, toMessage } from "./holdings/holding.ts";
import { createHoldingRegistry } from "./holdings/holding-registry.ts";
import { createMemoryAccount } from "./holdings/memory-account.ts";
import { recover } from "./holdings/recovery.ts";
import { advertisedHost } from "./host-address.ts";
import { createLeaseTable } from "./leases/lease-table.ts";
import { createTicketOffice } from "./leases/ticket-office.ts";
import { clearSocketPath, startLocalServer } from "./local/local-server.ts";
import { createLocalService } from "./local/local-service.ts";
import { memoryLimit } from "./memory-limit.ts";
import { createAgentMetrics } from "./metrics.ts";
import { type MoverProcess, startMover } from "./mover/mover-process.ts";
import { createOfferTable } from "./offers/offer-table.ts";
import { createOfferWork } from "./offers/offer-work.ts";
import { createPeerClient } from "./peers/peer-client.ts";
import { createPeerSecurity } from "./peers/peer-security.ts";
import { createPeerService, moverEndpoint } from "./peers/peer-service.ts";
import { createWorkerService } from "./peers/worker-service.ts";
import { openStore } from "./store/store-folder.ts";
import { createLinkRate } from "./transfers/link-rate.ts";
import { createTransferLog } from "./transfers/transfer-log.ts";

/** A running agent. */
export interface NodeAgent {
  /** host:port that peers dial. */
  readonly address: string;
  readonly dataAddress: string;
  readonly metricsPort: number;
  readonly socket: string;
  /** Settles, by rejecting, when the agent cannot go on. */
  readonly failed: Promise<never>;
  stop(): Promise<void>;
}

const VERSION: string = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")).version;
const STOP_GRACE_MS = 2000;
/** How long other nodes are asked what they hold before something is evicted. */
const HELD_ELSEWHERE_TIMEOUT_MS = 1000;
/** contract.md: seconds that stock clients give a transfer. */
const TRANSFER_TIMEOUT_S = 300;

function bindAddresses(bind: string): string[] {
  return bind === "" ? ["::", "0.0.0.0"] : [bind];
}

/** Inside a container: its root is an overlay, or Kubernetes says so. */
function insideContainer(): boolean {
  const root = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .find((line) => line.split(" ")[4] === "/");
  return process.env["KUBERNETES_SERVICE_HOST"] !== undefined || root?.split(" - ")[1]?.startsWith("overlay ") === true;
}

/** Starts an agent. Throws what keeps it from working, naming the setting; what was started by then is stopped again. */
export async function createNodeAgent(configuration: AgentConfiguration, log: Logger): Promise<NodeAgent> {
  const life = createLifecycle((part, error) =>
    log.warn({ event: "unclean-stop", part, error: toWeightlineError(error).message }, "did not stop cleanly"),
  );
  try {
    return await start(configuration, log, life);
  } catch (error) {
    await life.stop(STOP_GRACE_MS);
    throw error;
  }
}

async function start(
  configuration: AgentConfiguration,
  log: Logger,
  life: ReturnType<typeof createLifecycle>,
): Promise<NodeAgent> {
  const node = configuration.nodeName;
  const controlPlane = parseAddresses(configuration.controlPlane, "--control-plane");
  const host = await advertisedHost(configuration.host, configuration.bind, controlPlane);
  const bind = bindAddresses(configuration.bind);
  await clearSocketPath(configuration.socket);
  const store = await openStore(configuration.store, configuration.storeReadOnly, node);
  life.add({ name: "store", stop: () => store.close() });
  const level = native.storeViewLevel(store.view);
  if (level === "plain") {
    log.warn(
      { event: "protection-plain", store: store.path },
      "descriptors given to pods are only protected by being read-only: no read-only mount could be made (--store-ro)",
    );
  }
  const security = createPeerSecurity(configuration, log);
  life.add({ name: "security", stop: async () => security.close() });
  if (security.server === undefined) {
    log.warn("security is off: whoever reaches this node's ports can read every holding and pose as a node");
  }

  const agentMetrics = createAgentMetrics(VERSION);
  observeCertificate(agentMetrics.metrics, security.server?.certificates);
  const notReady = { recovering: true, draining: false };
  let address = "";
  /** What readiness depends on, once it is there. */
  let parts: { mover: MoverProcess; directory: DirectoryClient } | undefined;
  let descriptors: DescriptorServerHandle | undefined;

  const registry = createHoldingRegistry(store);
  const { totalBytes } = await store.space();
  const limitBytes = memoryLimit(configuration.memoryLimit, totalBytes);
  const { mover, ready: moverReady } = startMover({
    store: store.path,
    bind,
    port: configuration.dataPort,
    lock: store.lock,
    log,
    onServed: (report) => agentMetrics.sent(report),
    onDamage: (report) => void damageReported(report),
    onRestart: () => agentMetrics.moverRestarted(),
  });
  life.add({ name: "mover", stop: () => mover.stop() });
  const operations = await createOperationsServer({
    bind,
    port: configuration.metricsPort,
    portFlag: "--metrics-port",
    metrics: agentMetrics.metrics,
    notReady: () => reasons(),
    onFailure: createFailureLog(log),
  });
  life.add({ name: "operations server", stop: () => operations.stop() });

  const channel = createGrpcChannel({ addresses: controlPlane, tls: security.controlPlane });
  life.add({ name: "control plane channel", stop: () => channel.close() });
  const peers = createPeerClient(node, security.dial, log);
  life.add({ name: "peer channels", stop: () => peers.close() });

  const bounded = createBoundedLog(log);
  const leases = createLeaseTable(registry, bounded);
  const linkRate = createLinkRate(configuration.linkRate);
  const transfers = createTransferLog(node, linkRate);
  const fills = createFillBoard<Holding>();
  const loads = createFillBoard<Loaded>();
  const openDescriptors = () => {
    if (descriptors === undefined) {
      throw new WeightlineError("Unavailable", "the descriptor socket is not open yet", { wayOut: "try again" });
    }
    return descriptors;
  };
  const nodeState = () => (notReady.draining ? NodeState.DRAINING : NodeState.READY);

  const evictor = createEvictor({
    registry,
    mover,
    log,
    heldElsewhere,
    cancelFill: async (holding) => {
      await offers.endOf(holding);
      for (const named of holding.record.identities) {
        await fills.find(keyOf(named))?.cancel();
      }
      await loader.cancel(holding);
    },
    revoke: (holding) => {
      if (descriptors !== undefined) {
        native.revokeDescriptors(descriptors, holding.id);
      }
    },
  });
  const account = createMemoryAccount({
    store,
    limitBytes,
    holdings: () => registry.all(),
    makeRoom: (bytes, except) => evictor.makeRoom(bytes, except),
  });
  const directory = createDirectoryClient({
    channel,
    node,
    store,
    registry,
    account,
    address: () => address,
    nodeState,
    intervalMs: configuration.announceIntervalMs,
    version: VERSION,
    protection: level,
    log,
  });
  parts = { mover, directory };
  const algorithm = configuration.digest;
  const loadRoot = configuration.loadRoot === "" && !insideContainer() ? "/" : configuration.loadRoot;
  const loader = createLoader({
    node,
    store,
    registry,
    account,
    evictor,
    mover,
    log,
    loadRoot,
    threads: configuration.loadThreads,
    algorithm,
  });
  const puller = createPuller({
    node,
    store,
    registry,
    account,
    evictor,
    mover,
    directory,
    peers,
    transfers,
    log,
    streams: configuration.streams,
    stallTimeoutMs: configuration.stallTimeoutMs,
    algorithm,
    onTransfer: (report) => agentMetrics.received(report),
    onFallback: (reason) => agentMetrics.fallback(reason),
  });
  const acquirer = createAcquirer(registry, fills, puller);
  const offers = createOfferTable({
    registry,
    board: fills,
    leases,
    work: createOfferWork({
      store,
      registry,
      account,
      evictor,
      mover,
      log,
      threads: configuration.loadThreads,
      algorithm,
      descriptors: () => openDescriptors(),
    }),
    descriptors: () => openDescriptors(),
    onEnd: (outcome) => agentMetrics.offerEnded(outcome),
  });
  agentMetrics.observe({ registry, account, leases, transfers, offers });

  /** True when another node says, now, that it holds the same object whole. */
  async function heldElsewhere(holding: Holding): Promise<boolean> {
    const [named] = holding.record.identities;
    if (named === undefined) {
      return false;
    }
    const wanted = wantedFrom(named);
    const signal = AbortSignal.timeout(HELD_ELSEWHERE_TIMEOUT_MS);
    const holders = await directory.lookup(wanted, signal).catch(() => []);
    const others = holders.filter(({ node: name }) => name !== node);
    const found = await Promise.all(others.map((holder) => peers.find(holder, wanted, signal)));
    const target = targetOf(toMessage(holding));
    return found
      .flat()
      .some((one) => one.node !== node && one.holding.state === HoldingState.COMPLETE && matches(one, target));
  }

  const fillAgain = (holding: Holding) => {
    const [named] = holding.record.identities;
    if (named !== undefined) {
      acquirer
        .fill(wantedFrom(named))
        .fill.done.catch((error: unknown) =>
          log.warn(
            { event: "refill-failed", holding: holding.id, error: toWeightlineError(error).message },
            "a holding could not be filled again",
          ),
        );
    }
  };

  async function markDamaged(holding: Holding): Promise<void> {
    if (holding.record.state === "filling") {
      // Its fill goes on, and mends it before anybody calls it complete.
      log.error(
        { event: "holding-suspect", holding: holding.id, model: modelNameOf(holding) },
        "damaged while it is filled: it is served no more",
      );
      holding.suspect = true;
    }
    if (holding.record.state !== "complete") {
      return;
    }
    log.error(
      { event: "holding-damaged", holding: holding.id, model: modelNameOf(holding) },
      "damaged: it is attached and served no more",
    );
    if (descriptors !== undefined) {
      native.revokeDescriptors(descriptors, holding.id);
    }
    await registry.apply(holding, "damage-found");
    if (holding.leases === 0) {
      fillAgain(holding);
    }
  }

  async function damageReported(report: MoverReport): Promise<void> {
    const holding = registry.get(report.holdingId);
    if (holding !== undefined) {
      await markDamaged(holding);
    }
  }

  const checkDamage = async (holding: Holding, chunks: readonly bigint[]): Promise<boolean> => {
    const done = await mover.order({
      kind: "check",
      holdingId: holding.id,
      trustFlag: false,
      chunks: [...chunks],
      objectDigest: new Uint8Array(),
    });
    const wrong = (done.wrongChunks ?? []).length > 0;
    if (wrong) {
      await markDamaged(holding);
    }
    return wrong;
  };

  const health = createHealthStatus([PeerService.typeName, WorkerService.typeName]);
  const drain = () => {
    notReady.draining = true;
    health.set(false);
    log.info("draining: what runs is served, nothing new is opened");
    registry.changed();
  };
  const draining = () => notReady.draining;
  /** Why peers are sent away; "" when they are not. */
  const closedToPeers = () => (notReady.draining ? "is draining" : notReady.recovering ? "is checking its store" : "");

  const limitRecord = createLimitRecord(agentMetrics.metrics, log);
  const peerServer = await createGrpcServer({
    bind,
    port: configuration.port,
    portFlag: "--port",
    routes: withReflection([
      createPeerService({
        node,
        store,
        registry,
        mover,
        acquirer,
        transfers,
        log,
        host,
        algorithm,
        closed: closedToPeers,
        drain,
        checkDamage,
        checkNode: security.checkNode,
      }),
      createWorkerService({
        node,
        store,
        registry,
        leases,
        draining: () => closedToPeers() !== "",
        transferTimeoutSeconds: TRANSFER_TIMEOUT_S,
      }),
      health.route,
    ]),
    onFailure: createFailureLog(log),
    onLimit: limitRecord.onLimit,
    security: security.server,
  });
  limitRecord.follow(() => peerServer.connections());
  address = formatAddress({ host, port: peerServer.port });

  await moverReady;
  const recovered = await recover({
    store,
    registry,
    account,
    evictor,
    mover,
    log,
    resume: (holding) => {
      const { kind } = holding.record.source;
      log.info({ event: "fill-resumed", holding: holding.id, model: modelNameOf(holding), kind }, "a fill goes on");
      if (kind === "load" && holding.record.state === "filling") {
        const [named] = holding.record.identities;
        const fill = fills.start(named === undefined ? holding.id : keyOf(named), async (report, signal) => {
          await loader.resume(holding, report, signal);
          return holding;
        });
        fill.done.catch(async (error: unknown) => {
          log.warn(
            { event: "resume-failed", holding: holding.id, error: toWeightlineError(error).message },
            "an interrupted load could not go on",
          );
          if (!mover.closed()) {
            await evictor.evict(holding, 0);
          }
        });
      } else {
        fillAgain(holding);
      }
    },
  });
  notReady.recovering = false;
  life.add({ name: "fills", stop: () => Promise.all([fills.cancelAll(), loads.cancelAll()]).then(() => undefined) });
  life.add({ name: "peer server", stop: (graceMs) => peerServer.stop(graceMs) });

  const descriptorSocket = configuration.socket + DESCRIPTOR_SOCKET_SUFFIX;
  const tickets = createTicketOffice(() => descriptorServer, descriptorSocket);
  const descriptorServer = native.createDescriptorServer(descriptorSocket, store.view, (event) => {
    if (event.kind === "given") {
      offers.given(event);
    } else if (event.kind === "sent") {
      tickets.used(event.pid);
    } else {
      const { pid, reason } = event;
      bounded("warn", { event: "descriptors-refused", process: pid, reason }, "refused descriptors");
    }
  });
  descriptors = descriptorServer;
  life.add({ name: "descriptor server", stop: () => native.closeDescriptorServer(descriptorServer) });
  life.add({ name: "offers", stop: () => offers.close() });
  life.add({ name: "leases", stop: () => leases.close() });

  const local = await startLocalServer({
    path: configuration.socket,
    leases,
    log,
    bounded,
    onRefusal: (refusal) => agentMetrics.refusedLocally(refusal),
    route: createLocalService({
      registry,
      acquirer,
      loads,
      loader,
      evictor,
      leases,
      transfers,
      offers,
      tickets,
      descriptorSocket,
      draining,
      drain,
      doctor: createDoctor({
        node,
        channel,
        controlPlane: configuration.controlPlane,
        announces: directory.state,
        account,
        store,
        registry,
        mover,
        protection: level,
        socket: configuration.socket,
        descriptorSocket,
        dial: security.dial,
        certificateEndsMs: security.validToMs,
        env: process.env,
      }),
      onAcquire: (outcome, seconds) => agentMetrics.acquired(outcome, seconds),
      onAttach: (seconds) => agentMetrics.attached(seconds),
      status: () => ({
        node,
        epoch: store.epoch(),
        state: nodeState(),
        version: VERSION,
        memory: { limit: BigInt(limitBytes), used: BigInt(Math.round(account.usedBytes())) },
        notReady: reasons(),
        controlPlane: directory.state(),
        address,
        dataAddress: mover.address() === "" ? "" : moverEndpoint(mover.address(), host),
        protection: level,
        moverRestarts: BigInt(mover.restarts()),
      }),
    }),
  });
  life.add({ name: "local server", stop: () => local.stop() });
  directory.start();
  life.add({ name: "directory client", stop: () => directory.stop() });
  health.set(true);

  function reasons(): string[] {
    return [
      ...(notReady.recovering ? ["the store's holdings are being checked"] : []),
      ...(notReady.draining ? ["draining"] : []),
      ...(parts === undefined
        ? []
        : [parts.mover.trouble(), ...parts.directory.notReady()].filter((why) => why !== "")),
    ];
  }

  const dataAddress = moverEndpoint(mover.lastAddress(), host);
  log.info(
    {
      node,
      address,
      data_address: dataAddress,
      metrics_port: operations.port,
      socket: configuration.socket,
      store: store.path,
      limit_bytes: limitBytes,
      epoch: String(store.epoch()),
      protection: level,
      ...recovered,
    },
    "ready",
  );
  return {
    address,
    dataAddress,
    metricsPort: operations.port,
    socket: configuration.socket,
    failed: new Promise<never>(() => undefined),
    stop() {
      notReady.draining = true;
      health.set(false);
      return life.stop(STOP_GRACE_MS);
    },
  };
}
