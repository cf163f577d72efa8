// A chunk that is damaged after it was verified, while the rest still comes: found by a child, mended before the holding counts.
import { createHash } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, writeSync } from "node:fs";
import { HoldingState, TransferState } from "@weightline/proto/common";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { moverOf, until } from "../../support/processes.ts";
import { writeTensors } from "../../support/safetensors-file.ts";
import { trace } from "../../support/tracing.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const BYTES = 60_000_000;
const path = `${cluster.folder}/m.safetensors`;
const right = createHash("sha256")
  .update(writeTensors(path, { w: { dtype: "U8", shape: [BYTES] } }))
  .digest("hex");
const wanted = { name: { case: "model" as const, value: { modelName: "m" } } };

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // Its end is what counts.
  }
}

t.test("a load whose verified bytes are damaged under it", async (t) => {
  const origin = await cluster.startAgent("origin", ["--load-threads", "1"]);
  const child = await cluster.startAgent("child");
  // Each read of the model takes 40 ms: there is time to damage what came before.
  const slow = await trace((await moverOf(origin.program.pid)) ?? 0, `${cluster.folder}/slow.trace`, {
    calls: ["pread64"],
    inject: "pread64:delay_enter=40000",
    only: path,
  });
  const loading = all(origin.client.load({ path, modelName: "m" }));
  loading.catch(() => undefined);
  await until(
    "a part of it",
    async () => ((await origin.client.status({})).holdings[0]?.verifiedBytes ?? 0n) > 10_000_000n,
  );
  const [id] = readdirSync(`${origin.store}/holdings`);
  const file = `${origin.store}/holdings/${id}/files/m.safetensors`;
  const descriptor = openSync(file, "r+");
  writeSync(descriptor, Buffer.from("damaged!"), 0, 8, 5_000_000);
  closeSync(descriptor);
  t.equal((await origin.client.status({})).holdings[0]?.state, HoldingState.FILLING, "it is still being filled");

  const pulling = all(child.client.pull({ wanted }));
  pulling.catch(() => undefined);
  await origin.program.waitFor(/damaged while it is filled: it is served no more/);
  await loading;
  await slow.stop();
  t.match(slow.text(), /DELAYED/, "reads were slowed");
  t.match(origin.program.output(), /"chunks":1,"msg":"chunks that do not have their digest are filled again"/);
  const [holding] = (await origin.client.status({})).holdings;
  t.match(holding, { state: HoldingState.COMPLETE, repairs: 1 });
  t.equal(createHash("sha256").update(readFileSync(file)).digest("hex"), right, "mended before it was called complete");
  await pulling;
  const { transfers } = await child.client.transfers({});
  t.match(transfers[0]?.error, /chunk \d+ with bytes that do not have its digest/);
  t.match(transfers.at(-1), { parent: "origin", state: TransferState.DONE }, "the child asks again when it is mended");
  t.equal(await child.metric("weightline_chunks_total", 'result="refused"'), 1);
  const [received] = readdirSync(`${child.store}/holdings`);
  const bytes = readFileSync(`${child.store}/holdings/${received}/files/m.safetensors`);
  t.equal(createHash("sha256").update(bytes).digest("hex"), right);
});

t.test("a model that is evicted while it is loaded: the load ends in words, and its memory is free", async (t) => {
  const agent = await cluster.startAgent("evicting", ["--load-threads", "1"]);
  const slow = await trace((await moverOf(agent.program.pid)) ?? 0, `${cluster.folder}/evicting.trace`, {
    calls: ["pread64"],
    inject: "pread64:delay_enter=40000",
    only: path,
  });
  const loading = cluster.mxctl(["load", path, "--model-name", "other"], agent);
  await until(
    "a part of it",
    async () => ((await agent.client.status({})).holdings[0]?.verifiedBytes ?? 0n) > 5_000_000n,
  );
  const evicted = await cluster.mxctl(["evict", "--model-name", "other"], agent);
  t.equal(evicted.code, 0, evicted.stderr);
  const done = await loading;
  await slow.stop();
  t.not(done.code, 0);
  t.match(done.stderr, /the load of other was ended: it is being evicted/);
  await until("its memory", () => readdirSync(`${agent.store}/holdings`).length === 0, 5000);
  t.same((await agent.client.status({})).holdings, []);
  t.equal((await cluster.mxctl(["load", path, "--model-name", "other"], agent)).code, 0, "it can be loaded again");
});
