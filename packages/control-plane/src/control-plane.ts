import { readFileSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { ApiService } from "@weightline/proto/api";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { NodeService } from "@weightline/proto/node";
import { P2pService } from "@weightline/proto/p2p";
import {
  createFailureLog,
  createGrpcServer,
  createLifecycle,
  createLimitRecord,
  createOperationsServer,
  type Logger,
  toWeightlineError,
  withReflection,
} from "@weightline/runtime";
import { addAdminApi } from "./admin-api.ts";
import { createBackendWatch } from "./backend-watch.ts";
import type { ControlPlaneConfiguration } from "./configuration.ts";
import { createDirectory } from "./directory/create-directory.ts";
import { createSizeCounter } from "./directory/directory-size.ts";
import { measuredDirectory } from "./directory/measured-directory.ts";
import { createControlPlaneMetrics } from "./metrics.ts";
import { createFleet } from "./services/fleet.ts";
import { createNodeService } from "./services/node-service.ts";
import { createP2pService } from "./services/p2p-service.ts";
import { createApiService, createModelService, createStockHealthService } from "./services/stock-services.ts";
import { createServingState } from "./serving-state.ts";

/** A running control plane. */
export interface ControlPlane {
  readonly port: number;
  /** 0 when it is off. */
  readonly metricsPort: number;
  readonly failed: Promise<never>;
  stop(): Promise<void>;
}

const VERSION: string = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")).version;
/** For each part that stops after the last call. */
const STOP_GRACE_MS = 1000;
const SERVICES = [P2pService, ModelService, HealthService, ApiService, NodeService];

/** Starts the control plane. Throws what keeps it from working, naming the setting. */
export async function createControlPlane(configuration: ControlPlaneConfiguration, log: Logger): Promise<ControlPlane> {
  const life = createLifecycle((part, error) =>
    log.warn({ event: "unclean-stop", part, error: toWeightlineError(error).message }, "did not stop cleanly"),
  );
  const metrics = createControlPlaneMetrics(VERSION);
  const backend = createDirectory(configuration, log, metrics.observer);
  const directory = measuredDirectory(backend, (operation, seconds) =>
    metrics.asked(backend.backend, operation, seconds),
  );
  life.add({ name: "directory", stop: () => directory.close() });
  metrics.countSize(createSizeCounter(directory));
  const limitRecord = createLimitRecord(metrics.metrics, log);
  const fleet = createFleet(directory);
  const state = createServingState(
    directory.backend,
    SERVICES.map(({ typeName }) => typeName),
    [P2pService.typeName, NodeService.typeName],
  );
  const onFailure = createFailureLog(log);

  const bind = configuration.host === "" ? ["::", "0.0.0.0"] : [configuration.host];
  try {
    await directory.ready();
    const watch = await createBackendWatch({
      directory,
      log,
      onChange: (backend) => {
        metrics.backendUp(directory.backend, backend.ok);
        state.backend(backend);
      },
    });
    life.add({ name: "backend watch", stop: () => watch.stop() });
    let metricsPort = 0;
    if (configuration.metricsPort !== 0) {
      // Before and after the gRPC server, so that /readyz tells while that one drains.
      const operations = await createOperationsServer({
        bind,
        port: configuration.metricsPort,
        portFlag: "--metrics-port",
        metrics: metrics.metrics,
        notReady: () => state.reasons(),
        onFailure,
        routes: (http) => addAdminApi(http, directory, fleet),
      });
      metricsPort = operations.port;
      life.add({ name: "operations server", stop: () => operations.stop() });
    }
    const server = await createGrpcServer({
      bind,
      port: configuration.port,
      portFlag: "--port",
      routes: withReflection([
        createNodeService(directory, fleet, log, metrics.announced),
        createP2pService(directory, log),
        createStockHealthService(VERSION, () => state.status()),
        createApiService(),
        createModelService(),
        state.route,
      ]),
      onCall: metrics.called,
      onFailure,
      onLimit: limitRecord.onLimit,
      limits: { connectionsPerAddressCount: configuration.connectionsPerAddress },
    });
    limitRecord.follow(() => server.connections());
    state.started();
    log.info({ port: server.port, metrics_port: metricsPort, backend: directory.backend }, "ready");
    return {
      port: server.port,
      metricsPort,
      failed: new Promise<never>(() => undefined),
      async stop() {
        const drainMs = configuration.drainTimeoutMs;
        state.drain();
        log.info({ event: "draining", timeout_ms: drainMs }, "draining: what runs may end, nothing new is taken");
        // Who watches the health hears of it before its stream ends.
        await nextTurn();
        const begun = performance.now();
        await server.stop(drainMs);
        const tookMs = Math.round(performance.now() - begun);
        if (tookMs >= drainMs) {
          log.warn({ event: "drain-cut-short", timeout_ms: drainMs }, "calls that did not end in time were cut");
        }
        await life.stop(STOP_GRACE_MS);
      },
    };
  } catch (error) {
    await life.stop(STOP_GRACE_MS);
    throw error;
  }
}
