// The control plane's directory on Redis and in memory: lists, calls, announces, memory, replicas.
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { prepareCall } from "../test/support/http2-frames.ts";
import { ROOT, runCommand } from "../test/support/program.ts";
import { callsOn, offerCalls, openConnections, percentile, pressCalls } from "./call-load.ts";
import { measureAnnounces } from "./directory-announces.ts";
import { CALLS_PER_S, measureCalls } from "./directory-calls.ts";
import { measureLists } from "./directory-lists.ts";
import { measureReplicas } from "./directory-replicas.ts";
import { createReport, type DirectoryReport } from "./directory-report.ts";
import { type Backend, LOAD_CORE, type Redis, SERVER_CORE, startRedis, startServer } from "./directory-servers.ts";
import { isTrue, listCall, publishCall, updateCall } from "./directory-workers.ts";
import { type BenchResult, cpuSeconds, pssBytes } from "./measure.ts";

const BACKENDS: readonly Backend[] = ["memory", "redis"];
const MEMORY_WORKERS = 100_000;
const MEMORY_SOURCES = 1000;
const MEBIBYTE = 2 ** 20;
/** The server's garbage gets a moment before its memory is read. */
const SETTLE_MS = 3000;
const CONNECTIONS = 8;
const AT_ONCE = 64;

/** What the load reaches against a server that does nothing: above all that is measured, or the figures are the load's own. */
async function checkLoad(report: DirectoryReport): Promise<void> {
  const echo = spawn(
    "taskset",
    ["-c", SERVER_CORE, process.execPath, "--disable-warning=ExperimentalWarning", `${ROOT}bench/echo-server.ts`],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  try {
    const port = await new Promise<number>((resolve) =>
      echo.stdout.on("data", (text: Buffer) => resolve(Number(/port (\d+)/.exec(String(text))?.[1]))),
    );
    const connections = await openConnections(port, CONNECTIONS);
    const call = prepareCall("/echo", Buffer.alloc(200));
    const load = { send: callsOn(connections, () => call), right: isTrue };
    await pressCalls({ ...load, count: 10_000, atOnce: AT_ONCE });
    const before = cpuSeconds(process.pid);
    const offered = await offerCalls({ ...load, count: 2 * CALLS_PER_S, rate: CALLS_PER_S });
    const share = ((cpuSeconds(process.pid) - before) / offered.seconds) * 100;
    const pressed = await pressCalls({ ...load, count: 30_000, atOnce: AT_ONCE });
    report.note(
      `the load alone, against a server that does nothing but answer: ${Math.round(pressed.latenciesMs.length / pressed.seconds)} calls/s with ${AT_ONCE} at once; ` +
        `at ${CALLS_PER_S}/s p50 ${percentile(offered.latenciesMs, 0.5).toFixed(2)} ms, p99 ${percentile(offered.latenciesMs, 0.99).toFixed(2)} ms, ${Math.round(share)} % of a core`,
    );
    for (const connection of connections) {
      connection.close();
    }
  } finally {
    echo.kill();
  }
}

/** The server's memory with 100,000 workers, each of whose sources was listed once. */
async function measureMemory(report: DirectoryReport, port: number, pid: number, backend: Backend): Promise<void> {
  const connections = await openConnections(port, CONNECTIONS);
  const keyOf = (k: number) => ({
    group: `memory-${k % MEMORY_SOURCES}`,
    number: Math.floor(k / MEMORY_SOURCES),
  });
  const load = { atOnce: AT_ONCE };
  const empty = pssBytes(pid) / MEBIBYTE;
  let failed = 0;
  for (const call of [publishCall, updateCall]) {
    const send = callsOn(connections, (k) => call(keyOf(k)));
    failed += (await pressCalls({ ...load, send, count: MEMORY_WORKERS, right: isTrue })).failed;
  }
  const send = callsOn(connections, (k) => listCall(`memory-${k}`));
  failed += (await pressCalls({ ...load, send, count: MEMORY_SOURCES })).failed;
  await sleep(SETTLE_MS);
  report.add(`${backend}: server's memory (PSS) before`, "MiB", empty);
  report.ask(`${backend}: server's memory (PSS) with ${MEMORY_WORKERS} workers`, "MiB", pssBytes(pid) / MEBIBYTE, {
    atMost: 300,
  });
  report.ask(`${backend}: workers that were refused meanwhile`, "calls", failed, { atMost: 0 });
  for (const connection of connections) {
    connection.close();
  }
}

/** Without the backend there is nothing to measure: that is a figure that was missed. */
async function hasBackend(report: DirectoryReport, backend: Backend, redis: Redis): Promise<boolean> {
  const name = `${backend}: the control plane starts with it`;
  try {
    await (await startServer(backend, redis)).stop();
    report.ask(name, "of 1", 1, { atLeast: 1 });
    return true;
  } catch (error) {
    report.ask(name, "of 1", 0, { atLeast: 1 });
    report.note(`${backend}: ${error instanceof Error ? error.message : error}`);
    return false;
  }
}

async function measureBackend(report: DirectoryReport, backend: Backend, redis: Redis, runs: number): Promise<void> {
  const parts = [
    measureLists,
    measureCalls,
    measureAnnounces,
    (_: DirectoryReport, { port, pid }: { port: number; pid: number }) => measureMemory(report, port, pid, backend),
  ];
  for (const measure of parts) {
    await redis.ask("FLUSHALL");
    const server = await startServer(backend, redis);
    try {
      await measure(report, server, redis, runs);
    } finally {
      await server.stop();
    }
  }
}

async function measureTwo(report: DirectoryReport, redis: Redis, runs: number): Promise<void> {
  await redis.ask("FLUSHALL");
  const replicas = [await startServer("redis", redis), await startServer("redis", redis)] as const;
  try {
    await measureReplicas(report, ...replicas, runs);
  } finally {
    await Promise.all(replicas.map((replica) => replica.stop()));
  }
}

export async function run(runs: number): Promise<BenchResult> {
  const report = createReport();
  const folder = await mkdtemp(`${tmpdir()}/weightline-bench-`);
  await runCommand(["taskset", "-a", "-c", "-p", LOAD_CORE, String(process.pid)]);
  const redis = await startRedis(folder);
  try {
    await checkLoad(report);
    for (const backend of BACKENDS) {
      if (await hasBackend(report, backend, redis)) {
        await measureBackend(report, backend, redis, runs);
        if (backend === "redis") {
          await measureTwo(report, redis, runs);
        }
      }
    }
    report.note(
      `server on core ${SERVER_CORE}, Redis and the load on core ${LOAD_CORE}; latencies at a rate count from when a call was meant to start; ` +
        "CPU a list includes what the change before it costs; a command that a client sends is one round trip at most",
    );
    return report.result("directory");
  } finally {
    await redis.stop();
    await rm(folder, { recursive: true, force: true });
  }
}
