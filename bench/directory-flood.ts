// The control plane under a flood of one peer: what another client's calls take, beside what they take when it is quiet.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { FLOOD_KINDS } from "../test/support/flood.ts";
import { openRawConnection } from "../test/support/http2-frames.ts";
import { ROOT, runCommand, startCommand } from "../test/support/program.ts";
import { offerCalls, percentile } from "./call-load.ts";
import { publishWorkers } from "./directory-lists.ts";
import { createReport, type DirectoryReport } from "./directory-report.ts";
import { LOAD_CORE, startRedis, startServer } from "./directory-servers.ts";
import { getCall, isTrue } from "./directory-workers.ts";
import type { BenchResult } from "./measure.ts";

const GROUP = "flood";
const WORKERS = 100;
/** Of the client that is measured: little enough never to wait for itself. */
const CALLS_PER_S = 200;
const WINDOW_S = 3;
/** The flood is at its height before the window begins, and outlasts it. */
const RISE_MS = 500;
const OTHER = "127.0.0.2";

/** p99 in ms of GetMetadata by another client than the one that floods. */
async function otherClient(port: number): Promise<number> {
  const connection = await openRawConnection(port, OTHER);
  const done = await offerCalls({
    connections: [connection],
    next: (k) => getCall({ group: GROUP, number: k % WORKERS }),
    count: CALLS_PER_S * WINDOW_S,
    rate: CALLS_PER_S,
    right: isTrue,
  });
  connection.close();
  if (done.failed > 0) {
    throw new Error(`${done.failed} calls of the client that does not flood failed`);
  }
  return percentile(done.latenciesMs, 0.99);
}

async function measureKind(report: DirectoryReport, port: number, kind: string): Promise<void> {
  const quiet = await otherClient(port);
  const ms = RISE_MS * 2 + WINDOW_S * 1000;
  // The least of the shared core goes to the flood: the other client's own work must not wait for it.
  const flood = startCommand([
    ...["nice", "-n", "19", "taskset", "-c", LOAD_CORE],
    ...[process.execPath, "--disable-warning=ExperimentalWarning", `${ROOT}test/support/flood.ts`],
    ...[String(port), String(ms), kind],
  ]);
  await flood.waitFor(/^flooding/);
  await sleep(RISE_MS);
  const flooded = await otherClient(port);
  const [, count] = await flood.waitFor(new RegExp(`^${kind} (\\d+)$`, "m"), 60_000);
  await flood.stop();
  report.add(`${kind}: p99 before`, "ms", quiet);
  report.add(`${kind}: p99 meanwhile`, "ms", flooded);
  report.ask(`${kind}: meanwhile over before`, "times", flooded / quiet, { atMost: 2 });
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
          await measureKind(report, server.port, kind);
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
