// R11: two builds side by side. A copy of the sources with other format constants is the newer or older one.
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { ROOT } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";
import { contents, holdingFolder, readRecordJson } from "./support/store-files.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());

/** A change of one place in the sources. */
type Change = [file: string, from: string | RegExp, to: string];

/** Makes a second build beside this one, with the same addon; gives its root. */
function build(name: string, changes: readonly Change[]): string {
  const root = `${cluster.folder}/${name}/`;
  mkdirSync(root);
  symlinkSync(`${ROOT}node_modules`, `${root}node_modules`);
  cpSync(`${ROOT}packages`, `${root}packages`, {
    recursive: true,
    verbatimSymlinks: true,
    filter: (source) => !/\/rdma-native\/build|\/test$/.test(source),
  });
  symlinkSync(`${ROOT}packages/rdma-native/build`, `${root}packages/rdma-native/build`);
  for (const [file, from, to] of changes) {
    const path = `${root}packages/${file}`;
    const text = readFileSync(path, "utf8");
    const changed = text.replace(from, to);
    if (changed === text) {
      throw new Error(`${file} has no ${from}`);
    }
    writeFileSync(path, changed);
  }
  return root;
}

/** What the two sides of Open say of the addon's stream versions. */
function streams(least: number, most: number): Change[] {
  const said = `{ minStreamVersion: ${least}, maxStreamVersion: ${most} }`;
  return [
    ["node-agent/src/peers/peer-client.ts", "= native.buildInfo()", `= ${said}`],
    ["node-agent/src/peers/peer-service.ts", "= native.buildInfo()", `= ${said}`],
  ];
}

const RECORDS: Change[] = [
  ["node-agent/src/store/holding-record.ts", "RECORD_FORMAT = 1", "RECORD_FORMAT = 2"],
  ["node-agent/src/store/holding-record.ts", "RECORD_MIN_READER = 1", "RECORD_MIN_READER = 2"],
];
const newer = build("newer", [...RECORDS, ...streams(1, 2)]);
const newest = build("newest", streams(2, 2));
const newerStore = build("newer-store", [
  ["node-agent/src/store/store-folder.ts", "NODE_FORMAT = 1", "NODE_FORMAT = 2"],
]);
const olderControlPlane = build("older-control-plane", [
  ["control-plane/src/services/node-service.ts", /announceStream: [^\n]*\n/, ""],
  ["control-plane/src/services/node-service.ts", /async lookup\([\s\S]*?\n {4}\},\n/, ""],
  ["control-plane/src/services/node-service.ts", /listSources: async[^\n]*\n/, ""],
]);

const names = ["one", "two"];
for (const [i, name] of names.entries()) {
  writeTensors(`${cluster.folder}/${name}.safetensors`, {
    w: { dtype: "U8", shape: [500_000], data: Buffer.alloc(500_000, i + 1) },
  });
}
const load = (agent: Agent, name: string) =>
  cluster.mxctl(["load", `${cluster.folder}/${name}.safetensors`, "--model-name", name], agent);
const pull = (agent: Agent, name: string) => cluster.mxctl(["pull", "--model-name", name], agent);
const outcome = (agent: Agent, name: string) =>
  agent.python(`with agent.acquire(model_name="${name}") as held: print(held.outcome, held["w"].data[9])`);
const stop = (...agents: Agent[]) => Promise.all(agents.map(({ program }) => program.stop()));

t.before(() => cluster.startControlPlane());

t.test(
  "a store goes up a version, down and up again: what each can read it serves, the rest stays as it is",
  async (t) => {
    const old = await cluster.startAgent("node");
    t.equal((await load(old, "one")).code, 0);
    await stop(old);
    const flags = ["--store", old.store, "--socket", old.socket];
    const up = await cluster.startAgent("node", flags, { root: newer });
    t.match(up.program.output(), /"complete":1,"resumed":0,"evicted":0/);
    t.equal(await outcome(up, "one"), "held 1");
    t.equal((await load(up, "two")).code, 0);
    await stop(up);
    const folder = holdingFolder(old.store, "two");
    t.match(readRecordJson(folder), { format: 2, min_reader: 2 }, "it was the newer build");
    const before = contents(folder);

    const down = await cluster.startAgent("node", flags);
    t.match(down.program.output(), /"complete":1,"resumed":0,"evicted":0,"checkedBytes":0,"untouched":1/);
    t.match(down.program.output(), /written by a newer agent: its records need version 2, this agent reads 1/);
    t.equal(await outcome(down, "one"), "held 1");
    t.ok(Number((await down.client.status({})).memory?.used ?? 0n) > 1_000_000, "both count");
    t.equal((await pull(down, "two")).code, 3, "and is not served");
    await stop(down);
    t.same(contents(folder), before, "not a byte is another");

    const again = await cluster.startAgent("node", flags, { root: newer });
    t.match(again.program.output(), /"complete":2,"resumed":0,"evicted":0/);
    t.equal(await outcome(again, "two"), "held 2");
    await stop(again);
  },
);

t.test("a store whose node.json asks for a newer agent is not opened", async (t) => {
  const up = await cluster.startAgent("only-newer", [], { root: newerStore });
  await stop(up);
  const before = contents(up.store);
  await t.rejects(
    cluster.startAgent("only-newer", ["--store", up.store, "--socket", up.socket]),
    /node\.json was written by a newer agent: it needs version 2, this agent reads 1.*upgrade this agent/,
  );
  t.same(contents(up.store), before);
});

t.test("agents of two versions read from each other in the highest version that both speak", async (t) => {
  const old = await cluster.startAgent("old");
  const up = await cluster.startAgent("up", [], { root: newer });
  t.equal((await load(old, "one")).code, 0);
  t.equal((await load(up, "two")).code, 0);
  t.equal((await pull(up, "one")).code, 0);
  t.equal((await pull(old, "two")).code, 0);
  t.equal(await outcome(up, "one"), "held 1");
  t.equal(await outcome(old, "two"), "held 2");
  await stop(old, up);
});

t.test(
  "agents without a common version: refused in words at once, and another holder is taken where there is one",
  async (t) => {
    const old = await cluster.startAgent("c-old");
    const far = await cluster.startAgent("a-newest", [], { root: newest });
    t.equal((await load(far, "one")).code, 0);
    t.equal((await load(old, "two")).code, 0);
    for (const [agent, name, words] of [
      [old, "one", /node a-newest speaks stream versions 2 to 2, the child 1 to 1/],
      [far, "two", /node c-old speaks stream versions 1 to 1, the child 2 to 2/],
    ] as const) {
      const started = performance.now();
      const refused = await pull(agent, name);
      t.equal(refused.code, 1, refused.stdout);
      t.match(refused.stderr, words);
      t.match(refused.stderr, /upgrade the older agent/);
      t.ok(performance.now() - started < 10_000, "nobody waits for what does not change");
    }
    t.equal(readdirSync(`${old.store}/holdings`).length, 1, "nothing is left of it");
    const other = await cluster.startAgent("b-old");
    t.equal((await load(other, "one")).code, 0);
    t.equal((await pull(old, "one")).code, 0, "the first by name cannot be read, the second can");
    t.equal(await outcome(old, "one"), "held 1");
    await stop(old, far, other);
  },
);

t.test("an older control plane without our newer calls: announces arrive, the rest is refused in words", async (t) => {
  const other = await createCluster();
  t.teardown(() => other.stop());
  await other.startControlPlane([], { root: olderControlPlane });
  const a = await other.startAgent("a");
  t.equal((await other.mxctl(["load", `${cluster.folder}/one.safetensors`, "--model-name", "one"], a)).code, 0);
  t.equal(await outcome(a, "one"), "held 1", "what is held is attached");
  t.match((await other.mxctl(["nodes"])).stdout, /\ba\b.*ready/i);
  const missing = await other.mxctl(["pull", "--model-name", "two"], a);
  t.not(missing.code, 0);
  t.match(
    missing.stderr,
    /the control plane cannot look up two, rank 0: the other side is older.*upgrade the control plane/,
  );
  const sources = await other.mxctl(["sources"]);
  t.not(sources.code, 0);
  t.match(sources.stderr, /the other side is older and does not have this call/);
});
