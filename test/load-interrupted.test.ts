// Ctrl-C of a load: it ends with its last caller, and nothing of it stays.
import { readdirSync, truncateSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { startProgram } from "./support/program.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const a = await cluster.startAgent("a", ["--load-threads", "1"]);
const path = `${cluster.folder}/big.safetensors`;
const SIZE = 900_000_000;
const header = JSON.stringify({ w: { dtype: "U8", shape: [SIZE], data_offsets: [0, SIZE] } });
const length = Buffer.alloc(8);
length.writeBigUInt64LE(BigInt(header.length));
writeFileSync(path, Buffer.concat([length, Buffer.from(header)]));
truncateSync(path, 8 + header.length + SIZE);

const start = () => startProgram("mxctl", ["--socket", a.socket, "load", path, "--model-name", "big", "-o", "json"]);
const holdings = async () => (await a.client.status({})).holdings;

/** Waits until the load has bytes, and gives how many. */
async function begun(): Promise<bigint> {
  for (let i = 0; i < 5000; i++) {
    const [holding] = await holdings();
    if ((holding?.verifiedBytes ?? 0n) > 0n) {
      return holding?.verifiedBytes ?? 0n;
    }
    await sleep(2);
  }
  throw new Error("the load did not begin");
}

t.test("the only caller leaves in the middle: the load ends, its memory comes back", async (t) => {
  const load = start();
  const verified = await begun();
  load.kill("SIGINT");
  t.equal(await load.exited, 130);
  t.ok(verified < BigInt(SIZE), `left at ${verified} bytes`);
  t.match(load.output(), /^mxctl: the load ends with this command, unless somebody else waits for the same/);
  for (let i = 0; i < 1000 && (await holdings()).length > 0; i++) {
    await sleep(10);
  }
  t.same(await holdings(), []);
  t.same(readdirSync(`${a.store}/holdings`), [], "nothing is left");
});

t.test("one of two leaves: the other's load is done", async (t) => {
  const first = start();
  await begun();
  let leftAt: bigint | undefined;
  let loaded = 0n;
  for await (const { event } of a.client.load({ path, modelName: "big" })) {
    if (event.case === "progress" && leftAt === undefined) {
      // This caller waits too, as it was told how far it is.
      leftAt = event.value.verifiedBytes;
      first.kill("SIGINT");
      t.equal(await first.exited, 130);
    } else if (event.case === "loaded") {
      loaded = event.value.holding?.totalBytes ?? 0n;
    }
  }
  t.ok((leftAt ?? BigInt(SIZE)) < BigInt(SIZE), `the first left at ${leftAt} bytes`);
  t.equal(loaded, BigInt(8 + header.length + SIZE));
});
