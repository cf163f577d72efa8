// 10,000 nodes with 8 holdings each announce every 10 s.
import { openRawConnection, type PreparedCall } from "../test/support/http2-frames.ts";
import { callOnce, offerCalls, openConnections, percentile } from "./call-load.ts";
import { commandsPerRound } from "./directory-lists.ts";
import type { DirectoryReport } from "./directory-report.ts";
import { cpuOf, type Redis, type Server } from "./directory-servers.ts";
import { announceCall, isTrue } from "./directory-workers.ts";

const NODES = 10_000;
const ANNOUNCES_PER_S = NODES / 10;
const CONNECTIONS = 16;
const COUNTED_CALLS = 100;

export async function measureAnnounces(
  report: DirectoryReport,
  server: Server,
  redis: Redis,
  runs: number,
): Promise<void> {
  const connections = await openConnections(server.port, CONNECTIONS);
  const round = async (sequence: number) => {
    const first = sequence === 1;
    const calls = Array.from({ length: NODES }, (_, node) => announceCall(node, sequence, first));
    const load = { connections, next: (k: number) => calls[k] as PreparedCall, count: NODES, right: isTrue };
    const name = `${server.backend}: ${ANNOUNCES_PER_S} ${first ? "first" : "unchanged"} announces/s`;
    const { result, cpuS, wallS } = await cpuOf([server.pid, redis.pid], () =>
      offerCalls({ ...load, rate: ANNOUNCES_PER_S }),
    );
    const percent = (seconds: number | undefined) => ((seconds ?? 0) / wallS) * 100;
    const cpu = [`${name}, control plane's CPU`, "% of a core", percent(cpuS[0])] as const;
    const redisCpu = [`${name}, Redis's CPU`, "% of a core", percent(cpuS[1])] as const;
    if (first) {
      report.add(...cpu);
    } else {
      report.ask(...cpu, { atMost: 25 });
    }
    if (server.backend === "redis") {
      if (first) {
        report.add(...redisCpu);
      } else {
        report.ask(...redisCpu, { atMost: 10 });
      }
    }
    report.add(`${name}, p99`, "ms", percentile(result.latenciesMs, 0.99));
    report.ask(`${name}, not accepted`, "announces", result.failed, { atMost: 0 });
  };
  for (let sequence = 1; sequence <= runs + 1; sequence++) {
    await round(sequence);
  }
  if (server.backend === "redis") {
    const connection = await openRawConnection(server.port);
    const seen = await commandsPerRound(redis, COUNTED_CALLS, (node) =>
      callOnce(connection, announceCall(node, runs + 2, false)),
    );
    report.ask("redis: unchanged announce, commands that are sent", "a call", seen.sent, { atMost: 1 });
    report.add("redis: unchanged announce, commands inside scripts", "a call", seen.inScripts);
    connection.close();
  }
  for (const connection of connections) {
    connection.close();
  }
}
