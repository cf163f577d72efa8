import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import type { Client } from "@connectrpc/connect";
import { AgentService } from "@weightline/proto/local";
import { createLocalClient } from "@weightline/runtime";
import {
  type Finished,
  mxctl,
  type ProgramOptions,
  pythonEnvironment,
  type RunningProgram,
  runCommand,
  startProgram,
} from "./program.ts";

/** A control plane and agents of one test run, private to it. */
export interface Cluster {
  /** Folder for sockets, models and logs. */
  readonly folder: string;
  /** host:port; "" before startControlPlane. */
  controlPlane(): string;
  startControlPlane(flags?: readonly string[], options?: ProgramOptions): Promise<RunningProgram>;
  /** Starts an agent that has announced itself, unless there is no control plane. */
  startAgent(name: string, flags?: readonly string[], options?: ProgramOptions): Promise<Agent>;
  /** A folder on tmpfs of this run, for a store that outlives its agent. */
  store(name: string): string;
  mxctl(parameters: readonly string[], agent?: Agent): Promise<Finished>;
  /** Loads a model at an agent; throws what mxctl says when it fails. */
  load(agent: Agent, path: string, modelName: string): Promise<void>;
  stop(): Promise<void>;
}

/** A running agent. */
export interface Agent {
  readonly name: string;
  readonly program: RunningProgram;
  readonly socket: string;
  readonly store: string;
  readonly address: string;
  readonly dataAddress: string;
  readonly metricsPort: number;
  readonly client: Client<typeof AgentService>;
  metrics(): Promise<string>;
  /** Sum of a metric's samples whose labels hold `labels`. */
  metric(name: string, labels?: string): Promise<number>;
  /** Runs Python with `agent` connected; gives what it printed, or throws with its error. */
  python(code: string, parameters?: readonly string[]): Promise<string>;
}

const TMPFS = "/dev/shm";

async function removeStore(path: string): Promise<void> {
  // Complete holdings carry the immutable flag.
  await runCommand(["chattr", "-R", "-f", "-i", path]);
  await rm(path, { recursive: true, force: true });
}

export async function freePort(): Promise<number> {
  const { createServer } = await import("node:net");
  return new Promise((resolve) => {
    const server = createServer();
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

export async function createCluster(): Promise<Cluster> {
  const folder = await mkdtemp(`${tmpdir()}/weightline-`);
  const stores = await mkdtemp(`${TMPFS}/weightline-test-`);
  const programs: RunningProgram[] = [];
  let controlPlane = "";

  const cluster: Cluster = {
    folder,
    controlPlane: () => controlPlane,
    store: (name) => `${stores}/${name}`,
    async startControlPlane(flags = [], options = {}) {
      const port = flags.includes("--port") ? [] : ["--port", "0"];
      const metrics = flags.includes("--metrics-port") ? [] : ["--metrics-port", String(await freePort())];
      const program = startProgram(
        "control-plane",
        ["--host", "127.0.0.1", "--log-format", "json", ...port, ...metrics, ...flags],
        options,
      );
      programs.push(program);
      const [, bound] = await program.waitFor(/"port":(\d+),"metrics_port":\d+,"backend":"\w+","msg":"ready"/);
      controlPlane = `127.0.0.1:${bound}`;
      return program;
    },
    async startAgent(name, flags = [], options = {}) {
      const store = flags.includes("--store") ? (flags[flags.indexOf("--store") + 1] ?? "") : `${stores}/${name}`;
      const socket = flags.includes("--socket")
        ? (flags[flags.indexOf("--socket") + 1] ?? "")
        : `${folder}/${name}/agent.sock`;
      const given = (flag: string, ...values: string[]) => (flags.includes(flag) ? [] : [flag, ...values]);
      const program = startProgram(
        "node-agent",
        [
          ...given("--node-name", name),
          ...given("--store", store),
          ...given("--socket", socket),
          ...given("--bind", "127.0.0.1"),
          ...given("--port", "0"),
          ...given("--data-port", "0"),
          ...given("--metrics-port", "0"),
          ...given("--control-plane", controlPlane === "" ? "127.0.0.1:1" : controlPlane),
          ...given("--announce-interval", "1s"),
          ...given("--memory-limit", "3GiB"),
          ...given("--log-format", "json"),
          ...flags,
        ],
        options,
      );
      programs.push(program);
      const [line] = await program.waitFor(/^.*"msg":"ready".*$/m);
      const ready = JSON.parse(line) as { address: string; data_address: string; metrics_port: number };
      if (controlPlane !== "") {
        await program.waitFor(/the control plane answers/);
      }
      const metrics = async () => (await fetch(`http://127.0.0.1:${ready.metrics_port}/metrics`)).text();
      return {
        name,
        program,
        socket,
        store,
        address: ready.address,
        dataAddress: ready.data_address,
        metricsPort: ready.metrics_port,
        client: createLocalClient(AgentService, socket),
        metrics,
        async metric(metric, labels = "") {
          const lines = (await metrics())
            .split("\n")
            .filter((text) => text.startsWith(metric) && !text.startsWith("#") && text.includes(labels));
          return lines.reduce((sum, text) => sum + Number(text.slice(text.lastIndexOf(" ") + 1)), 0);
        },
        async python(code, parameters = []) {
          const done = await runCommand(
            ["python3", "-c", `import sys, weightline\nagent = weightline.connect()\n${code}`, ...parameters],
            { env: pythonEnvironment({ MX_AGENT_SOCKET: socket }), timeoutMs: 120_000 },
          );
          if (done.code !== 0) {
            throw new Error(`python: exit ${done.code}\n${done.stdout}\n${done.stderr}`);
          }
          return done.stdout.trim();
        },
      };
    },
    mxctl: (parameters, agent) =>
      mxctl([
        ...(controlPlane === "" ? [] : ["--endpoint", controlPlane]),
        ...(agent === undefined ? [] : ["--socket", agent.socket]),
        ...parameters,
      ]),
    async load(agent, path, modelName) {
      const done = await cluster.mxctl(["load", path, "--model-name", modelName], agent);
      if (done.code !== 0) {
        throw new Error(`load ${path}: exit ${done.code}\n${done.stderr}`);
      }
    },
    async stop() {
      await Promise.all(programs.map((program) => program.stop()));
      await removeStore(stores);
      await rm(folder, { recursive: true, force: true });
    },
  };
  return cluster;
}
