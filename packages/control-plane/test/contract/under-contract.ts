import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { CONTROL_PLANE_OPTIONS, type ControlPlane, createControlPlane } from "@weightline/control-plane";
import { P2pService, SourceStatus, type WorkerMetadataSchema } from "@weightline/proto/p2p";
import { createGrpcChannel, createLogger, type GrpcChannel, type Logger, readConfiguration } from "@weightline/runtime";
import t, { type Test } from "tap";
import { BACKENDS, type Backend } from "./backends.ts";
import { identityOf } from "./identity.ts";

/** A control plane with a client, on one backend. */
export interface Plane {
  /** True: others on the backend share its records. */
  readonly shared: boolean;
  readonly controlPlane: ControlPlane;
  readonly channel: GrpcChannel;
  readonly p2p: Client<typeof P2pService>;
  /** Publishes a worker of {@link identityOf} with these changes and says that it is READY. */
  ready(identity?: object, worker?: MessageInitShape<typeof WorkerMetadataSchema>): Promise<Published>;
}

/** What a worker is found by. */
export interface Published {
  sourceId: string;
  workerId: string;
}

export interface PlaneOptions {
  /** Variables besides the backend's. */
  env?: Readonly<Record<string, string>>;
  log?: Logger;
}

/** Starts one on the backend at hand, which ends with `t`. Those of one backend share its records, where it shares them. */
export type StartPlane = (t: Test, options?: PlaneOptions) => Promise<Plane>;

let nextWorker = 0;

async function startPlane(
  t: Test,
  backend: { shared: boolean; env: Readonly<Record<string, string>> },
  options: PlaneOptions,
): Promise<Plane> {
  const { values } = readConfiguration({
    table: CONTROL_PLANE_OPTIONS,
    argv: ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"],
    env: { ...backend.env, ...options.env },
  });
  const log = options.log ?? createLogger({ program: "test", level: "error", format: "json", file: "" });
  const controlPlane = await createControlPlane(values, log);
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: controlPlane.port }] });
  t.teardown(async () => {
    channel.close();
    await controlPlane.stop();
  });
  const p2p = channel.client(P2pService);
  return {
    shared: backend.shared,
    controlPlane,
    channel,
    p2p,
    async ready(identity = {}, worker = {}) {
      const workerId = `w${nextWorker++}`;
      const { mxSourceId } = await p2p.publishMetadata({
        identity: identityOf(identity),
        workerId,
        worker: { accelerator: "cuda", ...worker },
      });
      const done = await p2p.updateStatus({
        mxSourceId,
        workerId,
        workerRank: worker.workerRank ?? 0,
        status: SourceStatus.READY,
      });
      if (!done.success) {
        throw new Error(`worker ${workerId} did not become ready: ${done.message}`);
      }
      return { sourceId: mxSourceId, workerId };
    },
  };
}

/** Rules as tests of `t`. */
export type ContractBody = (t: Test, plane: Plane, start: StartPlane) => Promise<void>;

/**
 * Runs the rules on every backend, each in a test that is called after it. `body` gets a control plane that all its tests
 * share, and can start others.
 */
export function onEveryBackend(body: ContractBody, backends: readonly Backend[] = BACKENDS): void {
  for (const backend of backends) {
    t.test(backend.name, async (t) => {
      const open = await backend.open();
      t.teardown(() => open.close());
      const start: StartPlane = (test, options = {}) =>
        startPlane(test, { shared: backend.shared, env: open.env }, options);
      await body(t as Test, await start(t as Test), start);
    });
  }
}

/** The same on memory alone, for rules that no backend has a part in. */
export function onMemory(body: ContractBody): void {
  onEveryBackend(
    body,
    BACKENDS.filter(({ name }) => name === "memory"),
  );
}
