// 24: a store that is over its limit at the start; what is not ours in it, and what a newer agent left.
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldingState } from "@weightline/proto/common";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { pythonEnvironment, runCommand, startCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";
import { allocatedBytes, changeRecord, clearFlags, contents, holdingFolder } from "./support/store-files.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const origin = await cluster.startAgent("origin");
const MEGABYTE = 1_000_000;
const SMALL = 30 * MEGABYTE;
const LARGE = 200 * MEGABYTE;

const path = (name: string) => `${cluster.folder}/${name}.safetensors`;
for (const name of ["oldest", "middle", "newest"]) {
  writeTensors(path(name), { w: { dtype: "U8", shape: [SMALL], data: Buffer.alloc(SMALL, name) } });
}
writeTensors(path("large"), { w: { dtype: "U8", shape: [LARGE] } });
for (const name of ["oldest", "middle", "newest", "large"]) {
  await cluster.mxctl(["load", path(name), "--model-name", name], origin);
}

const restart = (agent: Agent, limit: number) =>
  cluster.startAgent(agent.name, ["--store", agent.store, "--socket", agent.socket, "--memory-limit", String(limit)]);

async function kill(agent: Agent): Promise<void> {
  agent.program.kill("SIGKILL");
  await agent.program.exited;
}

async function namesHeld(agent: Agent): Promise<string[]> {
  return (await agent.client.status({})).holdings
    .filter(({ state }) => state === HoldingState.COMPLETE)
    .map(({ identities }) => identities[0]?.identity?.modelName ?? "")
    .sort();
}

/** Names in the order in which they were evicted, by the log: one event each. */
function evictions(agent: Agent): string[] {
  return [...agent.program.output().matchAll(/"event":"evicted","holding":"\w+","model":"(\w+)","why":"limit"/g)].map(
    ([, name]) => name ?? "",
  );
}

/** A Python process that has a model mapped until it is told to end. */
async function mapping(agent: Agent, name: string) {
  const process = startCommand(
    [
      "python3",
      "-u",
      "-c",
      `import time, weightline\nheld = weightline.connect().acquire(model_name="${name}")\nview = held["w"].data\nprint("mapped")\ntime.sleep(60)`,
    ],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
  );
  await process.waitFor(/mapped/);
  t.teardown(() => process.stop());
  return process;
}

t.test(
  "a full store, one holding that fills, kill -9, half the limit: unfinished and oldest ones go first, one event each",
  async (t) => {
    const agent = await cluster.startAgent("node", ["--memory-limit", "300MB"]);
    for (const name of ["oldest", "middle", "newest"]) {
      t.equal((await cluster.mxctl(["pull", "--model-name", name], agent)).code, 0);
    }
    const pulling = agent.python('agent.acquire(model_name="large", timeout=60)').catch(() => "ended with its agent");
    let verified = 0n;
    for (let i = 0; i < 3000 && verified < 10_000_000n; i++) {
      await sleep(2);
      verified =
        (await agent.client.status({})).holdings.find(({ state }) => state === HoldingState.FILLING)?.verifiedBytes ??
        0n;
    }
    await kill(agent);
    await pulling;
    t.ok(verified > 0n && verified < BigInt(LARGE), `killed at ${verified} of ${LARGE} bytes`);
    t.equal(readdirSync(`${agent.store}/holdings`).length, 4);

    const half = await restart(agent, 150 * MEGABYTE);
    t.same(evictions(half), ["large"], "what was unfinished makes room");
    t.same(await namesHeld(half), ["middle", "newest", "oldest"]);
    t.ok(allocatedBytes(agent.store) < 150 * MEGABYTE, "its memory is free");
    const ready = half.program.output().indexOf('"msg":"ready"');
    t.ok(half.program.output().indexOf('"why":"limit"') < ready, "before anything else is done");
    t.ok(Number((await half.client.status({})).memory?.used ?? 0n) <= 150 * MEGABYTE);
    await kill(half);

    const less = await restart(agent, 40 * MEGABYTE);
    t.same(evictions(less), ["oldest", "middle"], "older ones before newer ones, and no more than must");
    t.same(await namesHeld(less), ["newest"]);
    t.equal(readdirSync(`${agent.store}/holdings`).length, 1);
    const refused = await cluster.mxctl(["pull", "--model-name", "oldest"], less);
    t.equal(refused.code, 0, "room is made for what is asked for");
    t.same(await namesHeld(less), ["oldest"]);
    await less.program.stop();
  },
);

t.test("what a process has mapped stays over the limit, and the next one goes", async (t) => {
  const agent = await cluster.startAgent("mapped", ["--memory-limit", "300MB"]);
  for (const name of ["oldest", "middle", "newest"]) {
    t.equal((await cluster.mxctl(["pull", "--model-name", name], agent)).code, 0);
  }
  const pod = await mapping(agent, "oldest");
  await kill(agent);
  const less = await restart(agent, 70 * MEGABYTE);
  t.same(evictions(less), ["middle"]);
  t.match(less.program.output(), /"event":"eviction-waits",[^\n]*"model":"oldest"/);
  t.same(await namesHeld(less), ["newest", "oldest"]);
  // A second process has the other one, too: nothing may go, and what is held is served all the same.
  const second = await mapping(less, "newest");
  await kill(less);
  const none = await restart(agent, 20 * MEGABYTE);
  t.same(evictions(none), []);
  t.match(none.program.output(), /the store is still above its limit: nothing new is taken in/);
  t.same(await namesHeld(none), ["newest", "oldest"]);
  t.match(await none.python('with agent.acquire(model_name="oldest") as held: print(held.outcome)'), "held");
  t.equal((await cluster.mxctl(["pull", "--model-name", "middle"], none)).code, 1, "nothing new is taken in");
  await none.program.stop();
  pod.kill("SIGKILL");
  second.kill("SIGKILL");
});

t.test("a folder that cannot be used, but is mapped, keeps nobody from starting; it goes with its user", async (t) => {
  const agent = await cluster.startAgent("stuck");
  for (const name of ["oldest", "newest"]) {
    t.equal((await cluster.mxctl(["pull", "--model-name", name], agent)).code, 0);
  }
  const pod = await mapping(agent, "oldest");
  const folder = holdingFolder(agent.store, "oldest");
  await kill(agent);
  writeFileSync(`${folder}/record.json`, "{");
  const again = await restart(agent, 300 * MEGABYTE);
  t.same(await namesHeld(again), ["newest"]);
  t.match(again.program.output(), /a process has it mapped: its memory returns when that ends/);
  t.ok(Number((await again.client.status({})).memory?.used ?? 0n) > 2 * SMALL, "its bytes count until then");
  pod.kill("SIGKILL");
  await pod.exited;
  for (let i = 0; i < 100 && existsSync(folder); i++) {
    await sleep(50);
  }
  t.notOk(existsSync(folder));
  t.ok(Number((await again.client.status({})).memory?.used ?? 0n) < 2 * SMALL);
  await again.program.stop();
});

t.test(
  "a newer agent's holding and layout count, and are never touched; foreign files are only reported",
  async (t) => {
    const agent = await cluster.startAgent("older");
    for (const name of ["oldest", "middle", "newest"]) {
      t.equal((await cluster.mxctl(["pull", "--model-name", name], agent)).code, 0);
    }
    await agent.program.stop();
    await clearFlags(agent.store);
    // One that says so itself, and one whose layout is of a version that is not known here.
    const newer = holdingFolder(agent.store, "oldest");
    changeRecord(newer, { format: 2, min_reader: 2, state: "something new" });
    const other = holdingFolder(agent.store, "middle");
    const layout = readFileSync(`${other}/layout`);
    layout.writeUInt32LE(2, 8);
    writeFileSync(`${other}/layout`, layout);
    changeRecord(other, { layout_digest: createHash("sha256").update(layout).digest("hex") });
    mkdirSync(`${agent.store}/lost+found`);
    writeFileSync(`${agent.store}/lost+found/file`, Buffer.alloc(3 * MEGABYTE));
    const before = [newer, other, `${agent.store}/lost+found`].map(contents);

    const again = await restart(agent, 80 * MEGABYTE);
    t.match(again.program.output(), /"files":\["lost\+found"\],"count":1/);
    t.match(again.program.output(), /its records need version 2, this agent reads 1/);
    t.match(again.program.output(), /layout version 2 is not known; this agent reads version 1/);
    t.same(evictions(again), ["newest"], "the others' bytes count: this one is over the limit with them");
    t.same(await namesHeld(again), []);
    const used = Number((await again.client.status({})).memory?.used ?? 0n);
    t.ok(used > 2 * SMALL && used < 2.1 * SMALL, `${used} bytes count`);
    const refused = await cluster.mxctl(["pull", "--model-name", "newest"], again);
    t.equal(refused.code, 1);
    t.match(refused.stderr, /28\.\d MiB are needed.*the limit is 76\.3 MiB/);
    await again.program.stop();
    t.same([newer, other, `${agent.store}/lost+found`].map(contents), before, "not a byte of them is another");
  },
);

t.test("an older agent than the store asks for does not start, and changes nothing", async (t) => {
  const agent = await cluster.startAgent("newer-store");
  await agent.program.stop();
  const newer = '{"format":2,"min_reader":2,"epochs":{"last":7},"name":"n"}\n';
  writeFileSync(`${agent.store}/node.json`, newer);
  await t.rejects(
    restart(agent, 80 * MEGABYTE),
    /node\.json was written by a newer agent: it needs version 2, this agent reads 1.*way out: upgrade this agent/s,
  );
  t.equal(readFileSync(`${agent.store}/node.json`, "utf8"), newer);
});

const cannotMount = process.getuid?.() === 0 ? false : "a tmpfs can be mounted by root alone";
t.test("a tmpfs without one free page: it starts, serves, and makes room", { skip: cannotMount }, async (t) => {
  const mount = mkdtempSync("/dev/shm/weightline-full-");
  const mounted = await runCommand(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", mount]);
  t.equal(mounted.code, 0, mounted.stderr);
  t.teardown(async () => {
    await runCommand(["umount", "-l", mount]);
    rmSync(mount, { recursive: true });
  });
  const flags = ["--store", `${mount}/store`, "--memory-limit", "75MB"];
  const agent = await cluster.startAgent("full", flags);
  for (const name of ["oldest", "newest"]) {
    t.equal((await cluster.mxctl(["pull", "--model-name", name], agent)).code, 0);
  }
  await kill(agent);
  const filler = await runCommand(["dd", "if=/dev/zero", `of=${mount}/filler`, "bs=4096"]);
  t.match(filler.stderr, /No space left on device/, "it is full");
  t.equal(statfsSync(mount).bfree, 0);

  const again = await cluster.startAgent("full", [...flags, "--socket", agent.socket]);
  t.same(await namesHeld(again), ["newest", "oldest"]);
  t.match(again.program.output(), /"complete":2,"resumed":0,"evicted":0/);
  t.match(await again.python('with agent.acquire(model_name="oldest") as held: print(held.outcome)'), "held");
  t.equal((await cluster.mxctl(["evict", "--model-name", "oldest"], again)).code, 0, "memory can be given back");
  t.equal(readdirSync(`${mount}/store/holdings`).length, 1);
  await again.program.stop();

  // Half the limit, and full again: it comes under it all the same.
  await runCommand(["dd", "if=/dev/zero", `of=${mount}/more`, "bs=4096"]);
  t.equal(statfsSync(mount).bfree, 0);
  const less = await cluster.startAgent("full", [
    "--store",
    `${mount}/store`,
    "--socket",
    agent.socket,
    "--memory-limit",
    "20MB",
  ]);
  t.same(evictions(less), ["newest"]);
  t.same(readdirSync(`${mount}/store/holdings`), []);
  t.ok((await less.client.status({})).epoch > 0n);
  await less.program.stop();
});
