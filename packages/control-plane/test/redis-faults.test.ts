// Redis lost, slow, full, flushed, overwritten, a replica, back with less than it had: promises R4 and R10.

import { copyFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { create, fromBinary } from "@bufbuild/protobuf";
import {
  createRedisDirectory,
  type Directory,
  parseRedisUrl,
  type RedisDirectoryOptions,
} from "@weightline/control-plane";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { HoldingSchema, HoldingState, NodeState, Tier } from "@weightline/proto/common";
import { AnnounceRequestSchema, AnnounceVerdict } from "@weightline/proto/node";
import { SourceStatus, WorkerMetadataSchema } from "@weightline/proto/p2p";
import { createLogger } from "@weightline/runtime";
import t, { type Test } from "tap";
import { createRedisServer, type RedisServer, type RedisServerOptions } from "../../../test/support/redis-server.ts";
import { beat, eventually, listed, publication, ready, SOURCE } from "./stock-workers.ts";

const log = createLogger({ program: "test", level: "error", format: "json", file: "" });
const HELD = filesIdentity("m");
const HELD_SOURCE = computeSourceId(HELD);
const HOLDING = "a".repeat(32);

interface Faulty {
  server: RedisServer;
  /** Another control plane's directory on the same Redis. */
  open(more?: Partial<RedisDirectoryOptions>): Promise<Directory>;
  failures: Map<string, number>;
}

async function faulty(t: Test, options: RedisServerOptions = {}): Promise<Faulty> {
  const server = await createRedisServer(options);
  t.teardown(() => server.remove());
  const failures = new Map<string, number>();
  return {
    server,
    failures,
    async open(more = {}) {
      const directory = createRedisDirectory({
        address: parseRedisUrl(server.url),
        ca: undefined,
        timeoutMs: 500,
        heartbeatTimeoutMs: 90_000,
        gcTimeoutMs: 3_600_000,
        statusTtlMs: 3_600_000,
        announceIntervalMs: 10_000,
        reaperIntervalMs: 1,
        observer: {
          failed: (kind) => failures.set(kind, (failures.get(kind) ?? 0) + 1),
          reconnected: () => failures.set("reconnected", (failures.get("reconnected") ?? 0) + 1),
        },
        log,
        ...more,
      });
      t.teardown(() => directory.close());
      await directory.ready();
      return directory;
    },
  };
}

let sequence = 0n;
function announce(change: { node?: string; holdings?: undefined } = {}) {
  sequence += 1n;
  const node = change.node ?? "n";
  const holding = create(HoldingSchema, {
    holdingId: HOLDING,
    state: HoldingState.COMPLETE,
    tier: Tier.DRAM,
    identities: [{ identity: HELD, rank: 0, sourceId: HELD_SOURCE }],
  });
  const message = create(AnnounceRequestSchema, {
    node,
    epoch: 1n,
    sequence,
    bootId: node,
    storeId: node,
    address: "127.0.0.1:1",
    state: NodeState.READY,
    ttlMs: 30_000,
    holdingsRevision: 1n,
    ...("holdings" in change ? {} : { holdings: { holdings: [holding] } }),
  });
  return message;
}

/** Every call is refused as unavailable, within its deadline. */
async function allRefused(t: Test, directory: Directory) {
  const calls: [string, () => Promise<unknown>][] = [
    ["publish", () => directory.publish(publication("w"))],
    ["updateStatus", () => beat(directory, "w")],
    ["list", () => directory.list({ sourceId: SOURCE })],
    ["list all", () => directory.list({})],
    ["worker", () => directory.worker(SOURCE, "w")],
    ["announce", () => directory.announce(announce())],
    ["lookup", () => directory.lookup(HELD_SOURCE, 0)],
    ["nodes", () => directory.nodes()],
    ["sources", () => directory.sources("")],
    ["health", () => directory.health()],
  ];
  for (const [name, call] of calls) {
    const started = performance.now();
    await t.rejects(call(), { code: "Unavailable" }, name);
    t.ok(performance.now() - started < 5000, `${name} ended by its deadline`);
  }
}

t.test("Redis stopped: every call is refused in time; started again empty: all is told anew", async (t) => {
  const { server, open, failures } = await faulty(t as Test);
  const directory = await open();
  await ready(directory, "w");
  await directory.announce(announce());
  await server.stop();
  await allRefused(t as Test, directory);
  await server.start();
  await eventually(() => directory.health());
  t.same(await listed(directory), [], "nothing that only the old Redis knew is believed");
  t.same(await directory.lookup(HELD_SOURCE, 0), []);
  t.equal(await beat(directory, "w"), "unknown", "so its client publishes again");
  t.equal((await directory.announce(announce({ holdings: undefined }))).verdict, AnnounceVerdict.RESEND);
  await ready(directory, "w");
  await directory.announce(announce());
  t.same(await listed(directory), ["w"]);
  t.equal((await directory.lookup(HELD_SOURCE, 0)).length, 1);
  t.ok((failures.get("reconnected") ?? 0) > 0);
});

t.test("Redis frozen: calls end by their deadline, and it is believed again when it goes on", async (t) => {
  const { server, open, failures } = await faulty(t as Test);
  const directory = await open();
  await ready(directory, "w");
  server.kill("SIGSTOP");
  await allRefused(t as Test, directory);
  t.ok((failures.get("timeout") ?? 0) > 0, "it was the deadline that ended them");
  server.kill("SIGCONT");
  await eventually(() => directory.health());
  t.same(await listed(directory), ["w"]);
});

t.test("flushed: no cached list survives, heartbeats and announces are asked to tell again", async (t) => {
  const { server, open } = await faulty(t as Test);
  const [one, other] = [await open(), await open()];
  await ready(one, "w");
  await one.announce(announce());
  t.same(await listed(one), ["w"]);
  t.same(await listed(other), ["w"]);
  await server.cli("FLUSHALL");
  for (const directory of [one, other]) {
    t.same(await listed(directory), []);
    t.same(await listed(directory, {}), []);
    t.equal(await directory.worker(SOURCE, "w"), undefined);
    t.same(await directory.lookup(HELD_SOURCE, 0), []);
  }
  t.equal(await beat(one, "w"), "unknown");
  t.equal((await one.announce(announce({ holdings: undefined }))).verdict, AnnounceVerdict.RESEND);
  await one.announce(announce());
  t.equal((await other.lookup(HELD_SOURCE, 0)).length, 1, "back with one announce");
});

t.test("a failover that lost writes: what was lost is not believed, and the rest is there", async (t) => {
  const { server, open } = await faulty(t as Test);
  const [one, other] = [await open(), await open()];
  await ready(one, "kept");
  await server.cli("SAVE");
  copyFileSync(`${server.folder}/dump.rdb`, `${server.folder}/older.rdb`);
  await ready(one, "lost");
  t.same((await listed(other)).sort(), ["kept", "lost"], "both replicas have read it");
  await server.stop();
  copyFileSync(`${server.folder}/older.rdb`, `${server.folder}/dump.rdb`);
  await server.start();
  for (const directory of [one, other]) {
    await eventually(() => directory.health());
    t.same(await listed(directory), ["kept"]);
  }
  await ready(one, "lost");
  t.same((await listed(other)).sort(), ["kept", "lost"]);
});

t.test("another type under any key: it goes, and the directory fills itself again", async (t) => {
  const { server, open, failures } = await faulty(t as Test);
  const directory = await open();
  const fill = async () => {
    await ready(directory, "w", { topology: { rack: "1" } });
    await directory.announce(announce());
  };
  await fill();
  const keys = (await server.cli("KEYS", "mx:*")).split("\n").filter((key) => key !== "mx:health");
  t.ok(keys.length >= 10, keys.join(" "));
  for (const key of keys) {
    for (const damage of [
      ["SET", key, "nonsense"],
      ["RPUSH", key, "nonsense"],
    ] as const) {
      await server.cli("UNLINK", key);
      await server.cli(...damage);
      await directory.list({ sourceId: SOURCE });
      await directory.list({});
      await directory.worker(SOURCE, "w");
      await directory.lookup(HELD_SOURCE, 0);
      await directory.nodes();
      // What an agent does: short first, then whatever it is asked for; a failure makes it tell all.
      await directory.announce(announce({ holdings: undefined })).catch(() => undefined);
      await fill();
      t.same(await listed(directory), ["w"], `${damage[0]} ${key}`);
      t.equal((await directory.lookup(HELD_SOURCE, 0)).length, 1, key);
      t.match(await directory.nodes(), [{ name: "n" }], key);
      t.ok(await directory.worker(SOURCE, "w"), key);
    }
  }
  t.ok((failures.get("wrong_type") ?? 0) >= keys.length / 2, "the types were met");
});

t.test("records that are none count as absent, and harm nothing else", async (t) => {
  const { server, open } = await faulty(t as Test);
  const directory = await open();
  for (const nonsense of [
    "",
    "{",
    "null",
    "7",
    "[]",
    '{"ranks":[]}',
    '{"ranks":[{"rank":"x"}]}',
    '{"node":7}',
    '{"ranks":{}}',
    // A rank that no message can have.
    '{"ranks":[{"rank":4294967296,"status":"READY","accelerator":"cuda","updated_at":9000000000000}]}',
  ]) {
    await ready(directory, "w");
    await ready(directory, "other");
    await server.cli("HSET", `mx:source:${SOURCE}`, "w", nonsense, "__version__", "9000000000000000");
    await server.cli("ZADD", `mx:changes:${SOURCE}`, "9000000000000000", "w");
    t.same(await listed(directory), ["other"], nonsense);
    t.equal(await directory.worker(SOURCE, "w"), undefined);
    t.equal(await beat(directory, "w"), "unknown");
    await server.cli("FLUSHALL");
  }
  await directory.announce(announce());
  const nonsense = { node: "n", rank: 0, status: "READY", accelerator: "cpu", holding: { state: "nonsense" } };
  await server.cli(
    "HSET",
    `mx:source:${HELD_SOURCE}`,
    "b-0",
    JSON.stringify(nonsense),
    "__version__",
    "9000000000000000",
  );
  await server.cli("ZADD", `mx:changes:${HELD_SOURCE}`, "9000000000000000", "b-0");
  t.match(
    await directory.lookup(HELD_SOURCE, 0),
    [{ holding: { holdingId: HOLDING } }],
    "beside a holding that is none",
  );
  t.equal((await directory.lookup(HELD_SOURCE, 0)).length, 1);
  await ready(directory, "w");
  await server.cli("HSET", `mx:source:${SOURCE}`, "__attributes__", "nonsense", "__generation__", "new");
  t.same(await listed(directory), []);
});

t.test("full: writes are refused in words, reads go on, and it takes writes again when there is room", async (t) => {
  const { server, open, failures } = await faulty(t as Test);
  const directory = await open();
  await ready(directory, "w");
  await server.cli("CONFIG", "SET", "maxmemory-policy", "noeviction");
  await server.cli("CONFIG", "SET", "maxmemory", "1");
  await t.rejects(directory.publish(publication("x")), { code: "Unavailable", message: /full/ });
  await t.rejects(beat(directory, "w"), { code: "Unavailable" });
  await t.rejects(directory.health(), { code: "Unavailable" });
  t.same(await listed(directory), ["w"]);
  t.ok((failures.get("full") ?? 0) >= 3);
  await server.cli("CONFIG", "SET", "maxmemory", "0");
  await directory.health();
  t.equal(await beat(directory, "w"), "stored");
});

t.test("34: a primary that becomes a replica: not healthy, and back when it is a primary again", async (t) => {
  const { server, open, failures } = await faulty(t as Test);
  const directory = await open();
  await ready(directory, "w");
  await server.cli("REPLICAOF", "127.0.0.1", "1");
  await t.rejects(beat(directory, "w"), { code: "Unavailable" });
  await eventually(async () => t.rejects(directory.health(), { code: "Unavailable" }));
  t.ok((failures.get("read_only") ?? 0) > 0);
  await server.cli("REPLICAOF", "NO", "ONE");
  await eventually(() => directory.health());
  t.equal(await beat(directory, "w"), "stored");
  t.ok((failures.get("reconnected") ?? 0) > 0, "over a new connection, which a moved name would have led elsewhere");
});

t.test("scripts that Redis forgot are loaded again; a killed connection comes back", async (t) => {
  const { server, open } = await faulty(t as Test);
  const directory = await open();
  await ready(directory, "w");
  await server.cli("SCRIPT", "FLUSH");
  t.equal(await beat(directory, "w"), "stored");
  await server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
  await eventually(() => beat(directory, "w"));
  t.same(await listed(directory), ["w"]);
});

t.test("what one replica writes the others see with their next answer; any of them may go", async (t) => {
  const { open } = await faulty(t as Test);
  const [one, other] = [await open(), await open()];
  for (let i = 0; i < 20; i++) {
    await ready(one, `w${i}`);
    t.equal((await listed(other)).length, i + 1);
  }
  await one.close();
  // Redis tells whole milliseconds, and workers of the same one are listed by their ids.
  await sleep(5);
  t.equal(await beat(other, "w3"), "stored");
  t.equal((await listed(other))[0], "w3", "newest first");
});

t.test("every key has a lifetime, and a person can read it", async (t) => {
  const { server, open } = await faulty(t as Test);
  const directory = await open();
  await ready(directory, "w", { topology: { rack: "1" }, nixlMetadata: undefined });
  await directory.announce(announce());
  await directory.health();
  const keys = (await server.cli("KEYS", "*")).split("\n");
  for (const key of keys) {
    t.ok(Number(await server.cli("PTTL", key)) > 0, key);
  }
  const record = await server.cli("HGETALL", `mx:source:${SOURCE}`);
  t.match(record, /"model_name":"Org\/Model"/);
  t.match(record, /"status":"READY"/);
  t.match(await server.cli("HGETALL", `mx:source:${HELD_SOURCE}`), /"node":"n"/);
  t.match(await server.cli("KEYS", "mx:source:*"), new RegExp(`mx:source:${SOURCE}:w`));
});

t.test("33: heartbeats of workers with 1.4 MB of metadata grow the log by less than 1 KiB each", async (t) => {
  const { server, open } = await faulty(t as Test, {
    arguments: ["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"],
  });
  const directory = await open();
  const nixlMetadata = Buffer.alloc(1_400_000, 7);
  for (let i = 0; i < 8; i++) {
    await ready(directory, `w${i}`, { backendMetadata: { case: "nixlMetadata", value: nixlMetadata } });
  }
  const logBytes = async () => {
    return Number(/aof_current_size:(\d+)/.exec(await server.cli("INFO", "persistence"))?.[1]);
  };
  const before = await logBytes();
  t.ok(before > 8 * 1_400_000, "the publishes are in it");
  for (let i = 0; i < 1000; i++) {
    await beat(directory, `w${i % 8}`);
  }
  t.ok((await logBytes()) - before < 1000 * 1024);
  const worker = await directory.worker(SOURCE, "w0");
  const metadata = worker && fromBinary(WorkerMetadataSchema, worker.metadata);
  t.ok(metadata?.backendMetadata.case === "nixlMetadata" && nixlMetadata.equals(metadata.backendMetadata.value));
});

t.test(
  "33: a heartbeat or publish that was received before a newer one changes nothing, however late it arrives",
  async (t) => {
    const { open } = await faulty(t as Test);
    // The late one's control plane received it a second before it reached Redis.
    let behind = 0;
    const clock = { monotonicMs: () => performance.now() - behind, unixMs: () => Date.now() };
    const [newer, late] = [await open(), await open({ clock })];
    await ready(late, "w");
    await newer.publish(publication("w", { agentName: "new" }));
    behind = 1000;
    t.equal(await beat(late, "w", SourceStatus.STALE), "superseded");
    behind = 2000;
    t.equal(await late.publish(publication("w", { agentName: "old" })), "superseded");
    t.same(await listed(newer), ["w"]);
    const worker = await newer.worker(SOURCE, "w");
    t.match(worker && fromBinary(WorkerMetadataSchema, worker.metadata), {
      agentName: "new",
      status: SourceStatus.READY,
    });
  },
);

t.test("Redis's clock jumps: who is alive stays, and who falls silent goes", async (t) => {
  const { server, open } = await faulty(t as Test, { movableClock: true });
  let past = 0;
  const directory = await open({ clock: { monotonicMs: () => performance.now() + past, unixMs: () => Date.now() } });
  await ready(directory, "w");
  await directory.announce(announce());
  t.same(await listed(directory), ["w"]);
  for (const jump of [600_000, -600_000]) {
    server.shiftClock(jump);
    t.same(await listed(directory), ["w"], `${jump} ms, before any heartbeat`);
    t.equal((await directory.lookup(HELD_SOURCE, 0)).length, 1);
    t.equal(await beat(directory, "w"), "stored");
    t.equal((await directory.announce(announce({ holdings: undefined }))).verdict, AnnounceVerdict.ACCEPTED);
    t.same(await listed(directory), ["w"], "after one");
    t.equal((await directory.lookup(HELD_SOURCE, 0)).length, 1);
  }
  past += 100_000;
  server.shiftClock(-600_000 + past);
  t.same(await listed(directory), []);
  t.same(await directory.lookup(HELD_SOURCE, 0), []);
});

t.test("workers that are over are removed from Redis too, with what they published", async (t) => {
  const { server, open } = await faulty(t as Test, { movableClock: true });
  let past = 0;
  const clock = { monotonicMs: () => performance.now() + past, unixMs: () => Date.now() };
  const directory = await open({ clock });
  const other = await open({ clock });
  await directory.publish(publication("never-ready"));
  await ready(directory, "silent", { topology: { a: "b" } });
  await ready(directory, "lives");
  t.equal((await listed(other, { sourceId: SOURCE })).length, 3);
  for (let hour = 0; hour < 3; hour++) {
    past += 1_900_000;
    server.shiftClock(past);
    await beat(directory, "lives");
  }
  t.same(await listed(directory, { sourceId: SOURCE }), ["lives"]);
  t.same(await listed(other, { sourceId: SOURCE }), ["lives"]);
  t.notMatch(await server.cli("KEYS", "*"), /never-ready|silent/);
  t.notMatch(await server.cli("HKEYS", `mx:source:${SOURCE}`), /never-ready|silent/);
});
