import { existsSync, readFileSync } from "node:fs";
import { tracerOf, until } from "./processes.ts";
import { type RunningProgram, startCommand } from "./program.ts";

/** strace on one process and all its threads. */
export interface Tracing {
  readonly tracer: RunningProgram;
  /** What it wrote so far. */
  text(): string;
  /** Sum of what a traced call returned, where that was a count. */
  returned(call: string): number;
  stop(): Promise<void>;
}

/** Traces `calls` of a process, injecting what `inject` says; settles when it is attached. */
export async function trace(
  pid: number,
  log: string,
  options: { calls: readonly string[]; inject?: string; only?: string },
): Promise<Tracing> {
  const tracer = startCommand([
    "strace",
    "-f",
    "-qq",
    "-s",
    "0",
    "-p",
    String(pid),
    "-o",
    log,
    ...(options.only === undefined ? [] : ["-P", options.only]),
    "-e",
    `trace=${options.calls.join(",")}`,
    ...(options.inject === undefined ? [] : ["-e", `inject=${options.inject}`]),
  ]);
  await until("strace", () => tracerOf(pid) !== 0);
  const text = () => (existsSync(log) ? readFileSync(log, "utf8") : "");
  return {
    tracer,
    text,
    returned: (call) =>
      [...text().matchAll(new RegExp(`${call}\\b.*\\) += (\\d+)$`, "gm"))].reduce((sum, [, n]) => sum + Number(n), 0),
    async stop() {
      tracer.kill("SIGINT");
      await tracer.exited;
    },
  };
}
