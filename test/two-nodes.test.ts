import { mkdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());

await cluster.startControlPlane();
const a = await cluster.startAgent("a");
const b = await cluster.startAgent("b");
const model = `${cluster.folder}/model`;
mkdirSync(model);
const bytes = writeTensors(`${model}/model.safetensors`, {
  w: { dtype: "F32", shape: [1000, 500] },
  b: { dtype: "BF16", shape: [33] },
});

t.test("load on one node, acquire on the other: the same tensors, one object", async (t) => {
  const loaded = await cluster.mxctl(["load", model, "--model-name", "m", "--output", "json"], a);
  t.equal(loaded.code, 0, loaded.stderr);
  const facts = JSON.parse(loaded.stdout);
  t.match(facts, { source_id: "f6f376e5d10056ad", total_bytes: bytes.length, items: 2, ignored_files: [] });
  const seen = await b.python(`
import json
progress = []
with agent.acquire(model_name="m", progress=progress.append) as held:
    t = held["w"]
    print(json.dumps({"names": list(held.names), "outcome": held.outcome, "digest": held.object_digest, "w": [t.dtype, t.shape, t.nbytes], "sum": sum(bytes(t.data)) , "readonly": t.data.readonly}))
`);
  const held = JSON.parse(seen);
  t.match(held, {
    names: ["b", "w"],
    outcome: "received",
    digest: facts.object_digest,
    w: ["F32", [1000, 500], 2_000_000],
    readonly: true,
  });
  const start = bytes.length - 2_000_000 - 66;
  const own = [...bytes.subarray(start)].reduce((sum, byte) => sum + byte, 0);
  const other = JSON.parse(
    await b.python(
      'import json\nwith agent.acquire(model_name="m") as held: print(json.dumps([held.outcome, sum(bytes(held["w"].data)) + sum(bytes(held["b"].data)), bytes(held.files["model.safetensors"]).hex()[:16]]))',
    ),
  );
  t.same(other, ["held", own, bytes.subarray(0, 8).toString("hex")]);
});

t.test("acquire by an identity: exactly that one", async (t) => {
  const identity = '{"model_name": "m", "extra_parameters": {"weightline.kind": "files"}}';
  t.equal(await b.python(`with agent.acquire(identity=${identity}) as held: print(held.outcome)`), "held");
  await t.rejects(
    b.python('agent.acquire(identity={"model_name": "m"}, timeout=5)'),
    /NotFound/,
    "never a search by name",
  );
});

t.test("what operators see", async (t) => {
  const nodes = JSON.parse((await cluster.mxctl(["nodes", "--output", "json"])).stdout);
  t.same(
    nodes.map((node: { name: string; state: string }) => [node.name, node.state]),
    [
      ["a", "ready"],
      ["b", "ready"],
    ],
  );
  const [holding] = nodes[1].holdings;
  t.match(holding, {
    model_name: "m",
    rank: 0,
    state: "complete",
    tier: "dram",
    verified_bytes: bytes.length,
    total_bytes: bytes.length,
  });
  for (const key of ["name", "state", "epoch", "address", "last_seen_ms", "memory", "holdings"]) {
    t.ok(key in nodes[0], `nodes has ${key}`);
  }
  for (const key of [
    "source_id",
    "object_digest",
    "model_name",
    "rank",
    "state",
    "verified_bytes",
    "total_bytes",
    "tier",
    "leases",
  ]) {
    t.ok(key in holding, `a holding has ${key}`);
  }
  const sources = JSON.parse((await cluster.mxctl(["sources", "--output", "json", "--model", "m"])).stdout);
  t.equal(sources.length, 1);
  // The last announced one comes first.
  t.same(
    sources[0].workers
      .map((worker: { node: string; status: string; accelerator: string }) => [
        worker.node,
        worker.status,
        worker.accelerator,
      ])
      .sort(),
    [
      ["a", "ready", "cpu"],
      ["b", "ready", "cpu"],
    ],
  );
  const transfers = JSON.parse((await cluster.mxctl(["transfers", "--output", "json"])).stdout);
  t.equal(transfers.length, 1);
  for (const key of [
    "object_digest",
    "model_name",
    "node",
    "parent",
    "transport",
    "state",
    "verified_bytes",
    "total_bytes",
    "bytes_per_s",
    "percent_of_bound",
    "blame",
  ]) {
    t.ok(key in transfers[0], `a transfer has ${key}`);
  }
  t.match(transfers[0], { node: "b", parent: "a", transport: "stream", state: "done" });
});

t.test("pull by way of the control plane, without a local agent; then evict", async (t) => {
  t.equal((await cluster.mxctl(["evict", "--model-name", "m"], b)).code, 0);
  const pulled = await cluster.mxctl(["pull", "--model-name", "m", "--nodes", "all", "--output", "json"]);
  t.equal(pulled.code, 0, pulled.stderr);
  t.same(
    JSON.parse(pulled.stdout).map((row: { node: string; state: string }) => [row.node, row.state]),
    [
      ["a", "complete"],
      ["b", "complete"],
    ],
  );
  const unknown = await cluster.mxctl(["pull", "--model-name", "m", "--nodes", "zz"]);
  t.equal(unknown.code, 3);
  t.match(unknown.stderr, /no node is called zz/);
});

t.test("a name that nobody holds: exit 3, near names, way out", async (t) => {
  const missing = await cluster.mxctl(["pull", "--model-name", "M2"], b);
  t.equal(missing.code, 3);
  t.match(missing.stderr, /no node holds M2, rank 0; near: m .*; way out: /);
  await t.rejects(
    b.python('agent.acquire(model_name="m", rank=7)'),
    /weightline.errors.NotFound: no node holds m, rank 7; near: m/,
  );
});

t.test("transfers --last: the parts of a real transfer add up to its time", async (t) => {
  const [last] = JSON.parse((await cluster.mxctl(["transfers", "--last", "1", "-o", "json"])).stdout);
  t.match(last, { model_name: "m", state: "done", parent: "a" });
  const { finding_s, opening_s, ...parts } = last.phases as Record<string, number>;
  t.ok((finding_s ?? 0) > 0 && (opening_s ?? 0) > 0, "it was looked for, and opened");
  const sum = Object.values(parts).reduce((all, seconds) => all + seconds, 0);
  const seconds = (last.ended_ms - last.started_ms) / 1000;
  t.ok(Math.abs(sum - seconds) < 0.1, `${JSON.stringify(parts)} of ${seconds} s`);
});

t.test("two objects under one name: visible, never mixed; --replace on one node", async (t) => {
  const other = `${cluster.folder}/other`;
  mkdirSync(other);
  writeTensors(`${other}/model.safetensors`, {
    w: { dtype: "F32", shape: [1000, 500] },
    b: { dtype: "BF16", shape: [33] },
  });
  const refused = await cluster.mxctl(["load", other, "--model-name", "m"], a);
  t.equal(refused.code, 6, "the same layout, other bytes");
  t.match(refused.stderr, /different object.*--replace/);
  const before = JSON.parse((await cluster.mxctl(["sources", "--output", "json"])).stdout);
  t.equal(before[0].workers.length, 2, "the refused load left nothing behind");
  const replaced = await cluster.mxctl(["load", other, "--model-name", "m", "--replace", "--output", "json"], a);
  t.equal(replaced.code, 0, replaced.stderr);
  await sleep(300);
  const digests = JSON.parse((await cluster.mxctl(["sources", "--output", "json"])).stdout)[0].workers.map(
    (worker: { object_digest: string }) => worker.object_digest,
  );
  t.equal(new Set(digests).size, 2, "both digests are visible");
  const c = await cluster.startAgent("c");
  const got = await c.python('with agent.acquire(model_name="m") as held: print(held.object_digest)');
  t.ok(digests.includes(got), "exactly one of them");
  t.equal(got, digests.toSorted()[0], "the lower digest, as both have one holder");
});

t.test("loading the same object again reads it and finds it held", async (t) => {
  const again = await cluster.mxctl(["load", `${cluster.folder}/other`, "--model-name", "m", "--output", "json"], a);
  t.match(JSON.parse(again.stdout), { already_held: true });
  const renamed = await cluster.mxctl(
    ["load", `${cluster.folder}/other`, "--model-name", "m-alias", "--output", "json"],
    a,
  );
  t.match(JSON.parse(renamed.stdout), { already_held: true });
  const nodes = JSON.parse((await cluster.mxctl(["nodes", "--output", "json"])).stdout);
  t.same(
    nodes[0].holdings.map((holding: { model_name: string }) => holding.model_name).sort(),
    ["m", "m-alias"],
    "one holding under two names",
  );
});

t.test("relay while loading: a child reads from a node whose own bytes still come from disk", async (t) => {
  const path = `${cluster.folder}/big.safetensors`;
  const size = 400_000_000;
  const whole = writeTensors(path, { w: { dtype: "U8", shape: [size] } });
  const slow = await cluster.startAgent("slow", ["--load-threads", "1"]);
  const loading = cluster.mxctl(["load", path, "--model-name", "big", "--output", "json"], slow);
  for (let i = 0; i < 3000 && ((await slow.client.status({})).holdings[0]?.verifiedBytes ?? 0n) < 10_000_000n; i++) {
    await sleep(1);
  }
  const [begun] = (await slow.client.status({})).holdings;
  await sleep(60);
  const pulled = await cluster.mxctl(["pull", "--model-name", "big", "--output", "json"], b);
  t.equal(pulled.code, 0, pulled.stderr);
  const loaded = await loading;
  t.equal(loaded.code, 0, loaded.stderr);
  t.ok((begun?.verifiedBytes ?? 0n) < BigInt(whole.length), "the child began before the load was done");
  t.equal(JSON.parse(pulled.stdout).object_digest, JSON.parse(loaded.stdout).object_digest);
});
