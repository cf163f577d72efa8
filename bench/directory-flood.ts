// The control plane under a flood of one peer: what another client's calls take, beside what they take when it is quiet.
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { FLOOD_KINDS } from "../test/support/flood.ts";
import { openRawConnection, type RawConnection } from "../test/support/http2-frames.ts";
import { ROOT, runCommand, startCommand } from "../test/support/program.ts";
import { callOnce, callsOn, offerCalls, percentile } from "./call-load.ts";
import { publishWorkers } from "./directory-lists.ts";
import { createReport, type DirectoryReport } from "./directory-report.ts";
import { LOAD_CORE, startRedis, startServer } from "./directory-servers.ts";
import { getCall, isTrue } from "./directory-workers.ts";
import { type BenchResult, median } from "./measure.ts";

const GROUP = "flood";
const WORKERS = 100;
/** Of the client that is measured: little enough never to wait for itself. */
const CALLS_PER_S = 200;
const WINDOW_S = 3;
/** The flood is at its height before the window begins, what it runs is compiled, and it outlasts the window. */
const RISE_MS = 2000;
/** Enough for a p99, however slow they are. */
const LEAST_CALLS = 100;
const NEW_CLIENTS = 5;
const NEW_CLIENTS_MS = 1000;
const OTHER = "127.0.0.2";

/** What another client than the one that floods sees of GetMetadata. */
interface Seen {
  /** p99 in ms. */
  waitMs: number;
  /** p99 of the CPU in ms that the server spent from a call to its reply: a wait that no other program's work is part of. */
  workMs: number;
  /** Ms until another one that comes now has its first reply, median. */
  firstMs: number;
}

/** CPU in ms of a process's first thread, on which the event loop runs. */
function loopCpuMs(pid: number): number {
  return Number(readFileSync(`/proc/${pid}/task/${pid}/schedstat`, "utf8").split(" ")[0]) / 1e6;
}

async function workPerCall(connection: RawConnection, pid: number): Promise<number> {
  const work: number[] = [];
  const end = performance.now() + WINDOW_S * 1000;
  for (let k = 0; performance.now() < end || k < LEAST_CALLS; k++) {
    const before = loopCpuMs(pid);
    await callOnce(connection, getCall({ group: GROUP, number: k % WORKERS }));
    work.push(loopCpuMs(pid) - before);
    await sleep(1);
  }
  return percentile(
    work.sort((a, b) => a - b),
    0.99,
  );
}

/** Ms until a client that comes now has its first reply. */
async function firstReplyMs(port: number): Promise<number> {
  const start = performance.now();
  const connection = await openRawConnection(port, OTHER);
  await callOnce(connection, getCall({ group: GROUP, number: 0 }));
  connection.close();
  return performance.now() - start;
}

async function otherClient(connection: RawConnection, port: number, pid: number): Promise<Seen> {
  const done = await offerCalls({
    send: callsOn([connection], (k) => getCall({ group: GROUP, number: k % WORKERS })),
    count: CALLS_PER_S * WINDOW_S,
    rate: CALLS_PER_S,
    right: isTrue,
  });
  if (done.failed > 0) {
    throw new Error(`${done.failed} calls of the client that does not flood failed`);
  }
  const workMs = await workPerCall(connection, pid);
  const firstMs: number[] = [];
  for (let i = 0; i < NEW_CLIENTS; i++) {
    firstMs.push(await firstReplyMs(port));
  }
  return { waitMs: percentile(done.latenciesMs, 0.99), workMs, firstMs: median(firstMs) };
}

async function measureKind(report: DirectoryReport, port: number, pid: number, kind: string): Promise<void> {
  // Its connection is open when the flood begins, as those of most clients are.
  const connection = await openRawConnection(port, OTHER);
  const quiet = await otherClient(connection, port, pid);
  const ms = RISE_MS * 2 + 2 * WINDOW_S * 1000 + NEW_CLIENTS_MS;
  // The least of the shared core goes to the flood: the other client's own work must not wait for it.
  const flood = startCommand([
    ...["nice", "-n", "19", "taskset", "-c", LOAD_CORE],
    ...[process.execPath, "--disable-warning=ExperimentalWarning", `${ROOT}test/support/flood.ts`],
    ...[String(port), String(ms), kind],
  ]);
  await flood.waitFor(/^flooding/);
  await sleep(RISE_MS);
  const flooded = await otherClient(connection, port, pid);
  connection.close();
  const [, count] = await flood.waitFor(new RegExp(`^${kind} (\\d+)$`, "m"), 60_000);
  await flood.stop();
  report.add(`${kind}: p99 before`, "ms", quiet.waitMs);
  report.add(`${kind}: p99 meanwhile`, "ms", flooded.waitMs);
  report.ask(`${kind}: p99 meanwhile over before`, "times", flooded.waitMs / quiet.waitMs, { atMost: 2 });
  report.add(`${kind}: a new client's first reply, before`, "ms", quiet.firstMs);
  report.add(`${kind}: a new client's first reply, meanwhile`, "ms", flooded.firstMs);
  report.add(`${kind}: server's CPU from call to reply, p99 before`, "ms", quiet.workMs);
  report.add(`${kind}: server's CPU from call to reply, p99 meanwhile`, "ms", flooded.workMs);
  report.add(`${kind}: what came`, "a second", (Number(count) * 1000) / ms);
}

export async function run(runs: number): Promise<BenchResult> {
  const report = createReport();
  const folder = await mkdtemp(`${tmpdir()}/weightline-bench-`);
  await runCommand(["taskset", "-a", "-c", "-p", LOAD_CORE, String(process.pid)]);
  const redis = await startRedis(folder);
  try {
    const server = await startServer("memory", redis);
    try {
      await publishWorkers(server.port, GROUP, WORKERS);
      for (let i = 0; i < runs; i++) {
        for (const kind of FLOOD_KINDS) {
          await measureKind(report, server.port, server.pid, kind);
        }
      }
    } finally {
      await server.stop();
    }
    report.note(
      `memory; the server has a core of its own, the flood and the measured client share the other; ${CALLS_PER_S} GetMetadata a second from another address`,
    );
    return report.result("directory-flood");
  } finally {
    await redis.stop();
    await rm(folder, { recursive: true, force: true });
  }
}
