// What the directory's bench runs: a Redis of its own, and control planes on it or on memory.
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { freePort } from "../test/support/cluster.ts";
import { type RunningProgram, startCommand, startProgram } from "../test/support/program.ts";
import { exactCpuSeconds } from "./measure.ts";

/** The server has a core of its own; Redis and the load share the other. */
export const SERVER_CORE = "0";
export const LOAD_CORE = "1";

export type Backend = "memory" | "redis";

/** A redis-server of the bench's own. */
export interface Redis {
  readonly pid: number;
  readonly url: string;
  /** One command without blanks in its words; gives the reply's text as Redis frames it. */
  ask(command: string): Promise<string>;
  /** The commands that ran during `work`, a line of MONITOR each, in their order. */
  commandsOf(work: () => Promise<unknown>): Promise<string[]>;
  stop(): Promise<void>;
}

/** A control plane with one backend. */
export interface Server {
  readonly backend: Backend;
  readonly port: number;
  readonly pid: number;
  stop(): Promise<void>;
}

const READY_MS = 10_000;
/** MONITOR tells a command after it ran; by then all of them are read. */
const MONITOR_SETTLE_MS = 100;

export async function startRedis(folder: string): Promise<Redis> {
  const path = `${folder}/redis.sock`;
  const program = startCommand([
    "taskset",
    "-c",
    LOAD_CORE,
    "redis-server",
    ...["--port", "0", "--unixsocket", path, "--save", "", "--dir", folder],
  ]);
  await program.waitFor(/ready to accept connections/i, READY_MS);
  const open = () => connect({ path });
  return {
    pid: program.pid,
    url: `unix://${path}`,
    ask(command) {
      return new Promise((resolve, reject) => {
        const socket = open();
        let text = "";
        socket.setEncoding("utf8").on("data", (piece: string) => {
          text += piece;
        });
        socket.once("error", reject);
        socket.once("close", () => resolve(text));
        socket.write(`${command}\r\nQUIT\r\n`);
      });
    },
    async commandsOf(work) {
      const socket = open();
      let text = "";
      socket.setEncoding("utf8").on("data", (piece: string) => {
        text += piece;
      });
      socket.write("MONITOR\r\n");
      while (!text.includes("OK")) {
        await sleep(1);
      }
      await work();
      await sleep(MONITOR_SETTLE_MS);
      socket.destroy();
      return text.split("\n").filter((line) => /^\+\d+\.\d+ \[/.test(line));
    },
    stop: async () => void (await program.stop()),
  };
}

/** Starts a control plane on the server's core. Throws what it said when it does not take the backend. */
export async function startServer(
  backend: Backend,
  redis: Redis,
  options: { core?: string; flags?: readonly string[] } = {},
): Promise<Server> {
  const env = { MX_METADATA_BACKEND: backend, ...(backend === "redis" ? { REDIS_URL: redis.url } : {}) };
  const flags = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", String(await freePort())];
  const program: RunningProgram = startProgram(
    "control-plane",
    [...flags, "--log-format", "json", ...(options.flags ?? [])],
    { env, wrapper: ["taskset", "-c", options.core ?? SERVER_CORE] },
  );
  const [, port] = await program.waitFor(/"port":(\d+),"metrics_port":\d+,"backend":"\w+","msg":"ready"/);
  return { backend, port: Number(port), pid: program.pid, stop: async () => void (await program.stop()) };
}

/** CPU seconds that a process spends while `work` runs. */
export async function cpuOf<T>(
  pids: readonly number[],
  work: () => Promise<T>,
): Promise<{ result: T; cpuS: number[]; wallS: number }> {
  const before = pids.map(exactCpuSeconds);
  const start = performance.now();
  const result = await work();
  const wallS = (performance.now() - start) / 1000;
  return { result, cpuS: pids.map((pid, i) => exactCpuSeconds(pid) - (before[i] ?? 0)), wallS };
}
