// PublishMetadata, UpdateStatus and GetMetadata at 5,000 calls a second, and as fast as one core answers.
import { openRawConnection, type PreparedCall } from "../test/support/http2-frames.ts";
import { callOnce, callsOn, offerCalls, openConnections, percentile, pressCalls } from "./call-load.ts";
import { commandsPerRound } from "./directory-lists.ts";
import type { DirectoryReport } from "./directory-report.ts";
import { cpuOf, type Redis, type Server } from "./directory-servers.ts";
import { getCall, isTrue, publishCall, updateCall, type WorkerKey } from "./directory-workers.ts";

export const CALLS_PER_S = 5000;
const OFFERED_S = 4;
const PRESSED_CALLS = 10_000;
const AT_ONCE = 64;
const CONNECTIONS = 8;
const WORKERS_PER_SOURCE = 100;
const COUNTED_CALLS = 100;
/** Calls of each method before anything is measured: a server that has just started compiles its code meanwhile. */
const FIRST_CALLS = 20_000;
/** Of the offered rate; the last calls of a run end after its time. */
const REACHED_SHARE = 0.98;

const METHODS: ReadonlyArray<[string, (key: WorkerKey) => PreparedCall]> = [
  ["PublishMetadata", publishCall],
  ["UpdateStatus", updateCall],
  ["GetMetadata", getCall],
];

function keyOf(k: number, group = "calls"): WorkerKey {
  return { group: `${group}-${Math.floor(k / WORKERS_PER_SOURCE)}`, number: k % WORKERS_PER_SOURCE };
}

export async function measureCalls(report: DirectoryReport, server: Server, redis: Redis, runs: number): Promise<void> {
  const connections = await openConnections(server.port, CONNECTIONS);
  const count = CALLS_PER_S * OFFERED_S;
  for (const [, call] of METHODS) {
    const next = (k: number) => call(keyOf(k, "first"));
    await pressCalls({ send: callsOn(connections, next), count: FIRST_CALLS, atOnce: AT_ONCE });
  }
  for (let i = 0; i < runs; i++) {
    for (const [method, call] of METHODS) {
      const name = `${server.backend}: ${method}`;
      const calls = Array.from({ length: count }, (_, k) => call(keyOf(k)));
      const next = (k: number) => calls[k] as PreparedCall;
      const load = { send: callsOn(connections, next), right: isTrue };
      const { result, cpuS } = await cpuOf([server.pid, redis.pid], () =>
        offerCalls({ ...load, count, rate: CALLS_PER_S }),
      );
      const { latenciesMs, failed, seconds } = result;
      report.ask(`${name} at ${CALLS_PER_S}/s, reached`, "calls/s", latenciesMs.length / seconds, {
        atLeast: CALLS_PER_S * REACHED_SHARE,
      });
      report.add(`${name} at ${CALLS_PER_S}/s, p50`, "ms", percentile(latenciesMs, 0.5));
      report.ask(`${name} at ${CALLS_PER_S}/s, p99`, "ms", percentile(latenciesMs, 0.99), { atMost: 15 });
      report.ask(`${name} at ${CALLS_PER_S}/s, failed`, "calls", failed, { atMost: 0 });
      report.add(`${name}, server's CPU`, "µs a call", ((cpuS[0] ?? 0) * 1e6) / count);
      const pressed = await pressCalls({ ...load, count: Math.min(PRESSED_CALLS, count), atOnce: AT_ONCE });
      report.add(`${name}, ${AT_ONCE} at once`, "calls/s", pressed.latenciesMs.length / pressed.seconds);
      if (server.backend === "redis") {
        report.add(`${name}, Redis's CPU`, "µs a call", ((cpuS[1] ?? 0) * 1e6) / count);
      }
    }
  }
  if (server.backend === "redis") {
    await countCommands(report, server, redis);
  }
  for (const connection of connections) {
    connection.close();
  }
}

/** A command that a client sends costs a round trip at most. */
async function countCommands(report: DirectoryReport, server: Server, redis: Redis): Promise<void> {
  const connection = await openRawConnection(server.port);
  for (const [method, call] of METHODS) {
    const seen = await commandsPerRound(redis, COUNTED_CALLS, (k) => callOnce(connection, call(keyOf(k))));
    report.ask(`redis: ${method}, commands that are sent`, "a call", seen.sent, { atMost: 2 });
    report.add(`redis: ${method}, commands inside scripts`, "a call", seen.inScripts);
  }
  connection.close();
}
