// 21 and its kind: objects of one name that come and go, and a holder that lies with matching digests. Never a mix, never wrong.
import { createHash } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, readSync, writeFileSync, writeSync } from "node:fs";
import { HoldingState, TransferState } from "@weightline/proto/common";
import { native } from "@weightline/rdma-native";
import t, { type Test } from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { until } from "./support/processes.ts";
import { pythonEnvironment, startCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";
import { clearFlags } from "./support/store-files.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();

const LARGE = 200_000_000;
const CHUNK_BYTES = 65_536;
const DIGEST_BYTES = 16;
const STALL = ["--stall-timeout", "1s"];
const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");

/** Writes a model of one tensor; gives its path and the digest of the file. */
function model(name: string, bytes: number): { path: string; digest: string } {
  const path = `${cluster.folder}/${name}.safetensors`;
  return { path, digest: sha256(writeTensors(path, { w: { dtype: "U8", shape: [bytes] } })) };
}

const wanted = (modelName: string) => ({ name: { case: "model" as const, value: { modelName } } });

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // Its end is what counts.
  }
}

const load = (agent: Agent, path: string, modelName: string) => all(agent.client.load({ path, modelName }));
const pull = (agent: Agent, modelName: string) => all(agent.client.pull({ wanted: wanted(modelName) }));

/** The digest of the one file of the one holding that lies in an agent's store. */
function fileDigest(t: Test, agent: Agent): string {
  const folders = readdirSync(`${agent.store}/holdings`);
  t.equal(folders.length, 1, "one holding, nothing left of another");
  const files = readdirSync(`${agent.store}/holdings/${folders[0]}/files`);
  return sha256(readFileSync(`${agent.store}/holdings/${folders[0]}/files/${files[0]}`));
}

async function untilMoving(agent: Agent): Promise<bigint> {
  let verified = 0n;
  await until("a part of it", async () => {
    verified = (await agent.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
    return verified > 5_000_000n;
  });
  return verified;
}

async function kill(agent: Agent): Promise<void> {
  agent.program.kill("SIGKILL");
  await agent.program.exited;
}

/** Changes a chunk of a holder's copy and the digest that it gives with it: a lie that every chunk's check believes. */
async function lie(agent: Agent, chunk: number): Promise<void> {
  const [id] = readdirSync(`${agent.store}/holdings`);
  const folder = `${agent.store}/holdings/${id}`;
  const [name] = readdirSync(`${folder}/files`);
  await clearFlags(folder);
  const file = openSync(`${folder}/files/${name}`, "r+");
  const bytes = Buffer.alloc(CHUNK_BYTES);
  readSync(file, bytes, 0, CHUNK_BYTES, chunk * CHUNK_BYTES);
  bytes.writeUInt8(bytes.readUInt8(100) ^ 1, 100);
  writeSync(file, bytes, 0, CHUNK_BYTES, chunk * CHUNK_BYTES);
  closeSync(file);
  const digests = openSync(`${folder}/digests`, "r+");
  writeSync(digests, native.digest("xxh3-128", bytes), 0, DIGEST_BYTES, chunk * DIGEST_BYTES);
  closeSync(digests);
}

t.test("one name, two contents, and the one that was begun vanishes: the other comes whole", async (t) => {
  const [one, two] = [model("one", LARGE), model("two", LARGE)];
  const holders = [await cluster.startAgent("a"), await cluster.startAgent("b")];
  for (const [i, { path }] of [one, two].entries()) {
    await load(holders[i] as Agent, path, "changing");
  }
  const sources = JSON.parse((await cluster.mxctl(["sources", "--output", "json"])).stdout);
  const digests = new Set(
    [...JSON.stringify(sources).matchAll(/"object_digest":"([0-9a-f]{64})"/g)].map(([, hex]) => hex),
  );
  t.equal(digests.size, 2, "both digests are visible");
  const child = await cluster.startAgent("c", STALL);
  const pulling = pull(child, "changing");
  pulling.catch(() => undefined);
  const at = await untilMoving(child);
  const { transfers } = await child.client.transfers({});
  const [first, other] = transfers[0]?.parent === "a" ? [holders[0], two] : [holders[1], one];
  await kill(first as Agent);
  t.ok(at < BigInt(LARGE), `its only holder died at ${at} bytes`);
  await pulling;
  t.equal(fileDigest(t, child), other.digest, "exactly the other one");
  t.ok(await child.program.waitFor(/"event":"fill-begun-anew"/));
  const moved = (await child.client.transfers({})).transfers;
  t.ok(
    moved.some(({ state }) => state === TransferState.FAILED) &&
      moved.some(({ state }) => state === TransferState.DONE),
  );
  await Promise.all([child, ...holders].map(({ program }) => program.stop()));
});

t.test("a lease on the first content keeps its bytes while the second takes its place", async (t) => {
  const agent = await cluster.startAgent("replacing");
  const paths = [1, 2].map((value) => {
    const path = `${cluster.folder}/v${value}.safetensors`;
    writeTensors(path, { w: { dtype: "U8", shape: [3_000_000], data: Buffer.alloc(3_000_000, value) } });
    return path;
  });
  await load(agent, paths[0] ?? "", "v");
  const replaced = `${cluster.folder}/replaced`;
  const pod = startCommand(
    [
      "python3",
      "-u",
      "-c",
      `import os, time, weightline
held = weightline.connect().acquire(model_name="v")
print("held")
while not os.path.exists("${replaced}"):
    time.sleep(0.02)
print("bytes", set(held["w"].data))
time.sleep(60)`,
    ],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
  );
  t.teardown(() => pod.stop());
  await pod.waitFor(/held/);
  t.equal((await cluster.mxctl(["load", paths[1] ?? "", "--model-name", "v", "--replace"], agent)).code, 0);
  t.equal(await agent.python('with agent.acquire(model_name="v") as held: print(set(held["w"].data))'), "{2}");
  writeFileSync(replaced, "");
  await pod.waitFor(/bytes \{1\}/);
  await pod.stop();
  await until("the memory of the first", () => readdirSync(`${agent.store}/holdings`).length === 1);
  await agent.program.stop();
});

t.test(
  "a holder that lies with matching digests: found at the end, left, and all of it comes from another",
  async (t) => {
    const { path, digest } = model("lied", 5_000_000);
    const liar = await cluster.startAgent("a-liar");
    const honest = await cluster.startAgent("b-honest");
    await load(liar, path, "lied");
    await load(honest, path, "lied");
    await lie(liar, 7);
    const child = await cluster.startAgent("child");
    await pull(child, "lied");
    const { transfers } = await child.client.transfers({});
    t.match(transfers, [
      { parent: "a-liar", state: TransferState.FAILED, error: /is not the one that was announced/ },
      { parent: "b-honest", state: TransferState.DONE },
    ]);
    t.equal(fileDigest(t, child), digest);
    t.equal(await child.metric("weightline_fallbacks_total", 'reason="distrusted"'), 1);
    t.equal(await child.metric("weightline_chunks_total", 'result="refused"'), 0, "no chunk gave it away");
    await child.client.evict({ wanted: wanted("lied") });
    await pull(child, "lied");
    t.match((await child.client.transfers({})).transfers.at(-1), { parent: "b-honest" }, "it is not asked again");
    await Promise.all([child, liar, honest].map(({ program }) => program.stop()));
  },
);

t.test("a lie in the part of a holder that has gone is not blamed on the one who brought the rest", async (t) => {
  const { path, digest } = model("half-lied", LARGE);
  const liar = await cluster.startAgent("a-gone");
  const honest = await cluster.startAgent("b-stays");
  await load(liar, path, "half-lied");
  await load(honest, path, "half-lied");
  await lie(liar, 3);
  const child = await cluster.startAgent("child-of-both", STALL);
  const pulling = pull(child, "half-lied");
  pulling.catch(() => undefined);
  const at = await untilMoving(child);
  await kill(liar);
  t.ok(at < BigInt(LARGE), `the liar died at ${at} bytes`);
  await pulling;
  t.equal(fileDigest(t, child), digest, "right in the end");
  const { transfers } = await child.client.transfers({});
  t.same(
    transfers.map(({ parent, state }) => [parent, state === TransferState.DONE]),
    [
      ["a-gone", false],
      ["b-stays", false],
      ["b-stays", true],
    ],
    "taken again from one alone",
  );
  t.equal(await child.metric("weightline_fallbacks_total", 'reason="distrusted"'), 0, "nobody was blamed");
  t.same(
    (await child.client.status({})).holdings.map(({ state }) => state),
    [HoldingState.COMPLETE],
  );
  await Promise.all([child, honest].map(({ program }) => program.stop()));
});
