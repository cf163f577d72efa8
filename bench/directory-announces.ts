// 10,000 nodes with 8 holdings each announce every 10 s, each on a stream of its own.
import type { RawReply, RawStream } from "../test/support/http2-frames.ts";
import { type LoadOptions, offerCalls, openConnections, percentile } from "./call-load.ts";
import { commandsPerRound } from "./directory-lists.ts";
import type { DirectoryReport } from "./directory-report.ts";
import { cpuOf, type Redis, type Server } from "./directory-servers.ts";
import { announceBytes, isTrue } from "./directory-workers.ts";
import { pssBytes } from "./measure.ts";

const NODES = 10_000;
const ANNOUNCES_PER_S = NODES / 10;
/** Those that tell all holdings: with more, each node on its own, the server's core is full. */
const FIRST_PER_S = ANNOUNCES_PER_S / 2;
const STREAM = "/weightline.node.v1.NodeService/AnnounceStream";
/** Fewer than nodes, since one address may not have as many; 25 streams on each. */
const CONNECTIONS = 400;
const COUNTED_CALLS = 100;
const MEBIBYTE = 2 ** 20;

export async function measureAnnounces(
  report: DirectoryReport,
  server: Server,
  redis: Redis,
  runs: number,
): Promise<void> {
  const connections = await openConnections(server.port, CONNECTIONS);
  const streams: Array<RawStream | undefined> = [];
  /** As an agent does it: a stream is opened with its first announce, and anew after one that was not answered. */
  const announce = (node: number, bytes: Uint8Array, done: (reply: RawReply) => void) => {
    streams[node] ??= connections[node % CONNECTIONS]?.stream(STREAM);
    streams[node]?.send(bytes, (reply) => {
      if (!reply.answered) {
        delete streams[node];
      }
      done(reply);
    });
  };
  const round = async (sequence: number) => {
    const first = sequence === 1;
    const rate = first ? FIRST_PER_S : ANNOUNCES_PER_S;
    const announces = Array.from({ length: NODES }, (_, node) => announceBytes(node, sequence, first));
    const send: LoadOptions["send"] = (node, _keep, done) => announce(node, announces[node] ?? Buffer.alloc(0), done);
    const load = { send, count: NODES, right: isTrue };
    const name = `${server.backend}: ${rate} ${first ? "first" : "unchanged"} announces/s`;
    const { result, cpuS, wallS } = await cpuOf([server.pid, redis.pid], () => offerCalls({ ...load, rate }));
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
    const seen = await commandsPerRound(
      redis,
      COUNTED_CALLS,
      (node) => new Promise<RawReply>((resolve) => announce(node, announceBytes(node, runs + 2, false), resolve)),
    );
    report.ask("redis: unchanged announce, commands that are sent", "a call", seen.sent, { atMost: 1 });
    report.add("redis: unchanged announce, commands inside scripts", "a call", seen.inScripts);
  }
  report.add(`${server.backend}: memory (PSS) with ${NODES} streams`, "MiB", pssBytes(server.pid) / MEBIBYTE);
  for (const connection of connections) {
    connection.close();
  }
}
