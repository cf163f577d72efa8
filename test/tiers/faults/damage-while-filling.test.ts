// A chunk that is damaged after it was verified, while the rest still comes: found by a child, mended before the holding counts.
import { createHash } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, writeSync } from "node:fs";
import { HoldingState, TransferState } from "@weightline/proto/common";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { moverOf, until } from "../../support/processes.ts";
import { pythonEnvironment, startCommand } from "../../support/program.ts";
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

t.test(
  "an offer whose first segment is damaged while the pod fills the second: it never counts as complete",
  async (t) => {
    const agent = await cluster.startAgent("offered");
    const child = await cluster.startAgent("taker");
    // Two items of this size do not share a segment.
    const size = 520 << 20;
    const pod = startCommand(
      [
        "python3",
        "-u",
        "-c",
        `import sys, weightline
agent = weightline.connect()
identity = {"model_name": "offered", "extra_parameters": {"weightline.kind": "tensors"}}
try:
    with agent.offer(identity=identity, tensors=[("t0", "U8", (${size},)), ("t1", "U8", (${size},))]) as filling:
        filling.write("t0", bytes(${size}))
        print("first given", flush=True)
        sys.stdin.readline()
        filling.write("t1", bytes(${size}))
        filling.seal()
        print("sealed", flush=True)
except weightline.Error as error:
    print("refused", error.code, error, flush=True)`,
      ],
      { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
    );
    t.teardown(() => pod.stop());
    await pod.waitFor(/first given/);
    const [id] = readdirSync(`${agent.store}/holdings`);
    const descriptor = openSync(`${agent.store}/holdings/${id}/files/0000`, "r+");
    writeSync(descriptor, Buffer.from("damaged!"), 0, 8, 5_000_000);
    closeSync(descriptor);
    const taking = child
      .python(
        'agent.acquire(identity={"model_name": "offered", "extra_parameters": {"weightline.kind": "tensors"}}, timeout=20)',
      )
      .catch((error: Error) => error.message);
    await agent.program.waitFor(/damaged while it is filled: it is served no more/);
    pod.say("go\n");
    await pod.waitFor(/refused (Unavailable chunk \d+ .* is damaged here|Corrupt .*was damaged while)|sealed/, 60_000);
    t.notMatch(pod.output(), /sealed/);
    await until("its memory", () => readdirSync(`${agent.store}/holdings`).length === 0);
    t.match(await taking, /exit 1/, "nobody got it");
  },
);
