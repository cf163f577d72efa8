import { closeSync, openSync, readdirSync, readSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldingState } from "@weightline/proto/common";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { runningMoverOf } from "./support/processes.ts";
import { runCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const a = await cluster.startAgent("a");
const b = await cluster.startAgent("b");
const c = await cluster.startAgent("c", ["--stall-timeout", "1s"]);
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [30_000_000] } });
await cluster.mxctl(["load", path, "--model-name", "m"], a);
const acquire = (agent: Agent, more = "") =>
  agent.python(
    `with agent.acquire(model_name="m", timeout=60) as held:\n    print(held.object_digest, flush=True)\n    ${more || "pass"}`,
  );
const digest = await acquire(b);

async function flip(agent: Agent, offset: number): Promise<void> {
  const [id] = readdirSync(`${agent.store}/holdings`);
  const file = `${agent.store}/holdings/${id}/files/m.safetensors`;
  await runCommand(["chattr", "-i", file]);
  const descriptor = openSync(file, "r+");
  const byte = Buffer.alloc(1);
  readSync(descriptor, byte, 0, 1, offset);
  writeSync(descriptor, Buffer.from([byte.readUInt8(0) ^ 1]), 0, 1, offset);
  closeSync(descriptor);
}

t.test(
  "a flipped byte at one holder: refused, left, finished from the other; the damaged copy is mended",
  async (t) => {
    await flip(a, 20_000_000);
    t.equal(await acquire(c), digest);
    t.equal(await c.metric("weightline_chunks_total", 'result="refused"'), 1);
    t.equal(await c.metric("weightline_fallbacks_total", 'reason="distrusted"'), 1);
    const transfers = JSON.parse((await cluster.mxctl(["transfers", "--output", "json"])).stdout) as Array<{
      node: string;
      parent: string;
      state: string;
    }>;
    t.same(
      transfers.filter(({ node }) => node === "c").map(({ parent, state }) => [parent, state]),
      [
        ["a", "failed"],
        ["b", "done"],
      ],
    );
    for (let i = 0; i < 100 && (await a.metric("weightline_chunks_total", 'result="verified"')) === 0; i++) {
      await sleep(100);
    }
    t.equal(await acquire(a), digest, "a is whole again");
    t.equal(await a.metric("weightline_chunks_total", 'result="verified"'), 1, "one chunk came");
    for (const [agent, event] of [
      [c, "chunks-refused"],
      [c, "peer-distrusted"],
      [a, "holding-damaged"],
      [a, "repair-begun"],
      [a, "repaired"],
    ] as const) {
      t.ok(await agent.program.waitFor(new RegExp(`"event":"${event}"`)), event);
    }
  },
);

t.test(
  "a holder that was left is asked again once it mended its copy; one wrong chunk more, and it is out again",
  async (t) => {
    /** Evicts at c, brings the object again, and gives the parents that it was asked of. */
    const parentsOfNext = async () => {
      const before = (await c.client.transfers({})).transfers.length;
      t.equal((await cluster.mxctl(["evict", "--model-name", "m"], c)).code, 0);
      t.equal(await acquire(c), digest);
      return (await c.client.transfers({})).transfers.slice(before).map(({ parent }) => parent);
    };
    t.equal((await a.client.status({})).holdings[0]?.repairs, 1, "it says that it mended it");
    t.same(await parentsOfNext(), ["a"], "asked again");
    await flip(a, 10_000_000);
    t.same(await parentsOfNext(), ["a", "b"], "out again");
    t.equal(await c.metric("weightline_fallbacks_total", 'reason="distrusted"'), 2);
    t.equal(await c.metric("weightline_chunks_total", 'result="refused"'), 2);
  },
);

t.test("a stopped peer: its streams end by the stall time, the rest comes from the other", async (t) => {
  const d = await cluster.startAgent("d", ["--stall-timeout", "1s"]);
  const mover = await runningMoverOf(a.program.pid);
  process.kill(mover, "SIGSTOP");
  try {
    t.equal(await acquire(d), digest);
    t.ok((await d.metric("weightline_fallbacks_total")) >= 1, "it left the silent one");
  } finally {
    process.kill(mover, "SIGCONT");
  }
  await d.program.stop();
});

t.test("a peer that dies in the middle: the rest comes from another", async (t) => {
  const big = `${cluster.folder}/big.safetensors`;
  writeTensors(big, { w: { dtype: "U8", shape: [250_000_000] } });
  const e = await cluster.startAgent("e");
  await cluster.mxctl(["load", big, "--model-name", "big"], e);
  t.equal((await cluster.mxctl(["pull", "--model-name", "big"], b)).code, 0);
  const f = await cluster.startAgent("f", ["--stall-timeout", "1s"]);
  const pulling = cluster.mxctl(["pull", "--model-name", "big"], f);
  let verified = 0n;
  for (let i = 0; i < 2000 && verified === 0n; i++) {
    await sleep(2);
    verified = (await f.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
  }
  // b comes first by its name.
  b.program.kill("SIGKILL");
  await b.program.exited;
  const done = await pulling;
  t.equal(done.code, 0, done.stderr);
  t.ok(verified < 250_000_000n, `killed at ${verified}`);
  t.same(
    (await f.client.status({})).holdings.map(({ state }) => state),
    [HoldingState.COMPLETE],
  );
});
