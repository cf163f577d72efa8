import { readFileSync } from "node:fs";
import { ApiService } from "@weightline/proto/api";
import { NodeState } from "@weightline/proto/common";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { NodeService } from "@weightline/proto/node";
import { P2pService } from "@weightline/proto/p2p";
import {
  createFailureLog,
  createGrpcServer,
  createHealthStatus,
  createLifecycle,
  createMetrics,
  createOperationsServer,
  type Logger,
  observeCertificate,
  toWeightlineError,
} from "@weightline/runtime";
import { addAdminApi } from "./admin-api.ts";
import type { ControlPlaneConfiguration } from "./configuration.ts";
import { measuredDirectory } from "./directory/measured-directory.ts";
import { createMemoryDirectory } from "./directory/memory-directory.ts";
import { createSecurity } from "./security/security.ts";
import { createFleet } from "./services/fleet.ts";
import { createNodeService } from "./services/node-service.ts";
import { createP2pService } from "./services/p2p-service.ts";
import { createApiService, createModelService, createStockHealthService } from "./services/stock-services.ts";

/** A running control plane. */
export interface ControlPlane {
  readonly port: number;
  /** 0 when it is off. */
  readonly metricsPort: number;
  readonly failed: Promise<never>;
  stop(): Promise<void>;
}

const VERSION: string = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")).version;
const STOP_GRACE_MS = 5000;
const RPC_BUCKETS_S = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5];
const SERVICES = [P2pService, ModelService, HealthService, ApiService, NodeService];

/** Starts the control plane. Throws what keeps it from working, naming the setting. */
export async function createControlPlane(configuration: ControlPlaneConfiguration, log: Logger): Promise<ControlPlane> {
  const life = createLifecycle((part, error) =>
    log.warn({ event: "unclean-stop", part, error: toWeightlineError(error).message }, "did not stop cleanly"),
  );
  const metrics = createMetrics();
  const rpcSeconds = metrics.histogram("weightline_rpc_seconds", "Time of served calls", RPC_BUCKETS_S, [
    "service",
    "method",
    "code",
  ]);
  const directorySeconds = metrics.histogram("weightline_directory_seconds", "Time of directory calls", RPC_BUCKETS_S, [
    "backend",
    "operation",
  ]);
  const nodes = metrics.gauge("weightline_nodes", "Known nodes", ["state"]);

  const tokenSeconds = metrics.histogram("weightline_token_check_seconds", "Time of token checks", RPC_BUCKETS_S, [
    "outcome",
  ]);
  const security = createSecurity({
    configuration,
    log,
    onTokenCheck: (outcome, seconds) => tokenSeconds.observe({ outcome }, seconds),
  });
  observeCertificate(metrics, security.server?.certificates);
  life.add({ name: "security", stop: async () => security.close() });
  const directory = measuredDirectory(
    createMemoryDirectory({
      heartbeatTimeoutMs: configuration.heartbeatTimeoutMs,
      gcTimeoutMs: configuration.gcTimeoutMs,
      announceIntervalMs: configuration.announceIntervalMs,
    }),
    (operation, seconds) => directorySeconds.observe({ backend: "memory", operation }, seconds),
  );
  life.add({ name: "directory", stop: () => directory.close() });
  const fleet = createFleet(directory, security);
  const health = createHealthStatus(SERVICES.map(({ typeName }) => typeName));
  let draining = false;
  metrics.onCollect(async () => {
    const states = (await directory.nodes()).map(({ state }) => state);
    for (const [state, name] of [
      [NodeState.READY, "ready"],
      [NodeState.DRAINING, "draining"],
      [NodeState.LOST, "lost"],
    ] as const) {
      nodes.set({ state: name }, states.filter((other) => other === state).length);
    }
  });

  const bind = configuration.host === "" ? ["::", "0.0.0.0"] : [configuration.host];
  try {
    const server = await createGrpcServer({
      bind,
      port: configuration.port,
      portFlag: "--port",
      routes: [
        createNodeService(directory, fleet, security, log),
        createP2pService(directory, log),
        createStockHealthService(VERSION, () => (draining ? "draining" : "ok")),
        createApiService(),
        createModelService(),
        health.route,
      ],
      onCall: (service, method, code, seconds) => rpcSeconds.observe({ service, method, code }, seconds),
      onFailure: createFailureLog(log),
      security: security.server,
    });
    life.add({ name: "gRPC server", stop: (graceMs) => server.stop(graceMs) });
    let metricsPort = 0;
    if (configuration.metricsPort !== 0) {
      const operations = await createOperationsServer({
        bind,
        port: configuration.metricsPort,
        portFlag: "--metrics-port",
        metrics,
        notReady: () => (draining ? ["draining"] : []),
        routes: (http) => addAdminApi(http, directory, fleet, security),
      });
      metricsPort = operations.port;
      life.add({ name: "operations server", stop: () => operations.stop() });
    }
    health.set(true);
    log.info({ port: server.port, metrics_port: metricsPort, backend: directory.backend }, "ready");
    return {
      port: server.port,
      metricsPort,
      failed: new Promise<never>(() => undefined),
      async stop() {
        draining = true;
        health.set(false);
        await life.stop(STOP_GRACE_MS);
      },
    };
  } catch (error) {
    await life.stop(STOP_GRACE_MS);
    throw error;
  }
}
