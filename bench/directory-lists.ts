// ListSources(READY) by identity: workers of one source id, unchanged and after a change by another one.
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { ListSourcesResponseSchema, P2pService, SourceInstanceRefSchema, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel } from "@weightline/runtime";
import { openRawConnection, type PreparedCall, type RawConnection } from "../test/support/http2-frames.ts";
import { callOnce, callsOn, openConnections, percentile, pressCalls } from "./call-load.ts";
import type { DirectoryReport } from "./directory-report.ts";
import { cpuOf, type Redis, type Server } from "./directory-servers.ts";
import { isTrue, listCall, publication, publishCall, updateCall } from "./directory-workers.ts";
import { median } from "./measure.ts";

const SIZES = [100, 1000, 10_000];
const BIG_WORKERS = 64;
const BIG_METADATA_BYTES = 1_400_000;
const ROUNDS = 100;
const COUNTED_ROUNDS = 20;
const AT_ONCE = 64;
const CONNECTIONS = 4;
const ATTEMPTS = 5;
/** Issue's figures in ms of p50: unchanged, after a change. */
const ASKED: Readonly<Record<string, { unchanged?: number; changed?: number }>> = {
  "10000 workers": { unchanged: 3, changed: 9 },
  [`${BIG_WORKERS} workers with 1.4 MB each`]: { unchanged: 5, changed: 5 },
};

/** Publishes workers and makes them READY; on a busy machine again, as clients do. Throws when some stay refused. */
export async function publishWorkers(port: number, group: string, count: number): Promise<void> {
  const connections = await openConnections(port, CONNECTIONS);
  for (const call of [publishCall, updateCall]) {
    const send = callsOn(connections, (k) => call({ group, number: k }));
    const load = { send, count, atOnce: AT_ONCE, right: isTrue };
    let done = await pressCalls(load);
    for (let again = 0; done.failed > 0 && again < ATTEMPTS; again++) {
      done = await pressCalls(load);
    }
    if (done.failed > 0) {
      throw new Error(`${done.failed} of ${count} workers of ${group} were refused: ${done.complaint}`);
    }
  }
  for (const connection of connections) {
    connection.close();
  }
}

async function publishBigWorkers(port: number, group: string): Promise<void> {
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port }], defaultTimeoutMs: 60_000 });
  const client = channel.client(P2pService);
  const publish = async (number: number): Promise<string> => {
    const done = await client.publishMetadata(publication({ group, number }, Buffer.alloc(BIG_METADATA_BYTES, number)));
    const ready = await client.updateStatus({
      mxSourceId: done.mxSourceId,
      workerId: done.workerId,
      workerRank: number % 8,
      status: SourceStatus.READY,
    });
    return done.success && ready.success ? "" : `${done.message}, ${ready.message}`;
  };
  for (let number = 0; number < BIG_WORKERS; number++) {
    let problem = await publish(number);
    for (let again = 0; problem !== "" && again < ATTEMPTS; again++) {
      problem = await publish(number);
    }
    if (problem !== "") {
      throw new Error(`worker ${number} of ${group} was refused: ${problem}`);
    }
  }
  channel.close();
}

/** The reply is what an encode of the whole gives, and what encodes of its single messages give one after another. */
export function isPlainEncoding(reply: Buffer): boolean {
  const message = fromBinary(ListSourcesResponseSchema, reply);
  const singles = message.instances.map((instance) => {
    const bytes = toBinary(SourceInstanceRefSchema, instance);
    const head = [0x0a];
    let length = bytes.length;
    for (; length >= 128; length >>= 7) {
      head.push((length & 0x7f) | 0x80);
    }
    return Buffer.concat([Buffer.from([...head, length]), bytes]);
  });
  return reply.equals(toBinary(ListSourcesResponseSchema, message)) && reply.equals(Buffer.concat(singles));
}

const ROUND_MARK = "weightline-bench-round";

/** Commands of one round of `work`: what most rounds have, since the control plane does some by itself now and then. */
export async function commandsPerRound(
  redis: Redis,
  rounds: number,
  work: (round: number) => Promise<unknown>,
): Promise<{ sent: number; inScripts: number }> {
  const lines = await redis.commandsOf(async () => {
    for (let i = 0; i < rounds; i++) {
      await redis.ask(`ECHO ${ROUND_MARK}`);
      await work(i);
    }
    await redis.ask(`ECHO ${ROUND_MARK}`);
  });
  const sent: number[] = [];
  const inScripts: number[] = [];
  for (const line of lines.filter((text) => !/"quit"/i.test(text))) {
    if (line.includes(ROUND_MARK)) {
      sent.push(0);
      inScripts.push(0);
    } else if (sent.length > 0) {
      const counts = / \[\d+ lua\] /.test(line) ? inScripts : sent;
      counts[counts.length - 1] = (counts.at(-1) ?? 0) + 1;
    }
  }
  // The last mark ends the last round.
  const usual = (counts: number[]) => median(counts.slice(0, -1));
  return { sent: usual(sent), inScripts: usual(inScripts) };
}

interface Subject {
  name: string;
  group: string;
  count: number;
}

async function timeLists(
  connection: RawConnection,
  list: PreparedCall,
  expected: number,
  before: (round: number) => Promise<unknown>,
): Promise<Float64Array> {
  const times: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    await before(round);
    const start = performance.now();
    const reply = await callOnce(connection, list);
    times.push(performance.now() - start);
    if (round === 0) {
      const found = fromBinary(ListSourcesResponseSchema, reply).instances.length;
      if (found !== expected) {
        throw new Error(`${found} workers were listed, not ${expected}`);
      }
    }
  }
  return Float64Array.from(times).sort();
}

async function measureSubject(report: DirectoryReport, server: Server, redis: Redis, subject: Subject): Promise<void> {
  const { group, count } = subject;
  const name = `${server.backend}: list of ${subject.name}`;
  const list = listCall(group);
  const connection = await openRawConnection(server.port);
  const change = (round: number) => callOnce(connection, updateCall({ group, number: (round * 7919) % count }));
  const ways = { unchanged: async () => undefined, changed: change };
  for (const [way, before] of Object.entries(ways)) {
    const asked = ASKED[subject.name]?.[way as keyof typeof ways];
    const { result, cpuS } = await cpuOf([server.pid, redis.pid], () => timeLists(connection, list, count, before));
    const p50 = percentile(result, 0.5);
    if (asked === undefined) {
      report.add(`${name}, ${way}, p50`, "ms", p50);
    } else {
      report.ask(`${name}, ${way}, p50`, "ms", p50, { atMost: asked });
    }
    report.add(`${name}, ${way}, p99`, "ms", percentile(result, 0.99));
    report.add(`${name}, ${way}, server's CPU`, "ms", ((cpuS[0] ?? 0) * 1000) / ROUNDS);
    if (server.backend === "redis") {
      report.add(`${name}, ${way}, Redis's CPU`, "ms", ((cpuS[1] ?? 0) * 1000) / ROUNDS);
    }
  }
  report.ask(
    `${name}: replies that are the plain encoding`,
    "of 1",
    isPlainEncoding(await callOnce(connection, list)) ? 1 : 0,
    { atLeast: 1 },
  );
  if (server.backend === "redis") {
    const unchanged = await commandsPerRound(redis, COUNTED_ROUNDS, () => callOnce(connection, list));
    const update = await commandsPerRound(redis, COUNTED_ROUNDS, change);
    const both = await commandsPerRound(redis, COUNTED_ROUNDS, async (round) => {
      await change(round);
      await callOnce(connection, list);
    });
    report.ask(`${name}, unchanged: Redis commands`, "a call", unchanged.sent, { atMost: 2 });
    report.ask(`${name}, changed: Redis commands`, "a call", Math.max(0, both.sent - update.sent), { atMost: 2 });
    report.add(`${name}, changed: commands inside scripts`, "a call", Math.max(0, both.inScripts - update.inScripts));
  }
  connection.close();
}

/** Measures every size once per run, on workers that are published once. */
export async function measureLists(report: DirectoryReport, server: Server, redis: Redis, runs: number): Promise<void> {
  const subjects: Subject[] = SIZES.map((count) => ({ name: `${count} workers`, group: `list-${count}`, count }));
  for (const { group, count } of subjects) {
    await publishWorkers(server.port, group, count);
  }
  const big = { name: `${BIG_WORKERS} workers with 1.4 MB each`, group: "list-big", count: BIG_WORKERS };
  await publishBigWorkers(server.port, big.group);
  for (let i = 0; i < runs; i++) {
    for (const subject of [...subjects, big]) {
      await measureSubject(report, server, redis, subject);
    }
  }
}
