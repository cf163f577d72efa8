// What is written before what: a kill between two writes must never leave more than is proved.
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { filesIdentity } from "@weightline/proto";
import type { MoverReport } from "@weightline/rdma-native";
import { createLogger } from "@weightline/runtime";
import t from "tap";
import { mend } from "../src/fills/mend.ts";
import type { Holding } from "../src/holdings/holding.ts";
import { createHoldingRegistry } from "../src/holdings/holding-registry.ts";
import type { HoldingStateName } from "../src/holdings/holding-state.ts";
import type { MoverClient } from "../src/mover/mover-client.ts";
import { MoverLostError } from "../src/mover/mover-process.ts";
import type { StoreFolder } from "../src/store/store-folder.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-order-`);
t.teardown(() => rmSync(folder, { recursive: true }));
const log = createLogger({ program: "node-agent", level: "error", format: "json", file: "" });
const signal = new AbortController().signal;
const id = "a".repeat(32);
// The one thing of a store that a registry uses.
const store = { holdingFolder: (name: string) => `${folder}/${name}` } as StoreFolder;
const recorded = (): string => JSON.parse(readFileSync(`${folder}/${id}/record.json`, "utf8")).state;

async function holdingIn(state: HoldingStateName) {
  rmSync(`${folder}/${id}`, { recursive: true, force: true });
  mkdirSync(`${folder}/${id}`);
  const registry = createHoldingRegistry(store);
  const holding: Holding = await registry.add(
    id,
    {
      identities: [{ identity: filesIdentity("m"), rank: 0 }],
      state,
      source: { kind: "transfer", node: "origin", expected: "" },
      origin: id,
      layoutDigest: "b".repeat(64),
      objectDigest: "",
      createdMs: 1,
    },
    1,
  );
  holding.layout = {
    kind: "files",
    algorithm: "xxh3-128",
    chunkBytes: 65_536,
    itemCount: 1,
    segments: [],
    totalBytes: 1,
    layoutBytes: 1,
    digest: "b".repeat(64),
  };
  return { registry, holding };
}

/** A mover that answers every order with `answer`; it sees what the record says at that moment. */
function moverWith(answer: () => Promise<Partial<MoverReport>>): MoverClient {
  return { order: () => answer() as Promise<MoverReport>, closed: () => false };
}

t.test("complete: the record says so before anybody here may attach it", async (t) => {
  const { registry, holding } = await holdingIn("filling");
  const applied = registry.apply(holding, "filled", (record) => {
    record.objectDigest = "c".repeat(64);
  });
  t.equal(holding.record.state, "filling");
  while (holding.record.state === "filling") {
    t.equal(holding.record.objectDigest, "");
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.equal(recorded(), "complete");
  await applied;
  t.match(holding.record, { state: "complete", objectDigest: "c".repeat(64) });
});

t.test("evicting and damaged: nobody attaches it from then on, whatever the record still says", async (t) => {
  for (const [event, state] of [
    ["evict", "evicting"],
    ["damage-found", "damaged"],
  ] as const) {
    const { registry, holding } = await holdingIn("complete");
    const applied = registry.apply(holding, event);
    t.equal(holding.record.state, state);
    await applied;
    t.equal(recorded(), state);
  }
});

t.test("an eviction that begins while the record is being completed has the last word", async (t) => {
  const { registry, holding } = await holdingIn("filling");
  const filled = t.rejects(registry.apply(holding, "filled"), { code: "Cancelled", message: /is evicting by now/ });
  await registry.apply(holding, "evict");
  await filled;
  t.equal(holding.record.state, "evicting");
  t.equal(recorded(), "evicting");
});

t.test("refill: wrong chunks lose their marks before the record says filling", async (t) => {
  const { registry, holding } = await holdingIn("damaged");
  let atRepair = "";
  const mover = moverWith(async () => {
    atRepair = recorded();
    return { verifiedBytes: 5n, wrongChunks: [3n] };
  });
  await mend(mover, registry, holding, signal, log);
  t.equal(atRepair, "damaged", "killed there, the next start finds it damaged");
  t.equal(recorded(), "filling");
  t.match(holding, { verifiedBytes: 5, repairs: 1, suspect: false });
});

t.test("a mover that dies over the repair leaves it damaged, or suspect", async (t) => {
  const mover = moverWith(async () => {
    throw new MoverLostError();
  });
  const damaged = await holdingIn("damaged");
  await t.rejects(mend(mover, damaged.registry, damaged.holding, signal, log), { code: "Unavailable" });
  t.equal(damaged.holding.record.state, "damaged");
  t.equal(recorded(), "damaged");
  const filling = await holdingIn("filling");
  filling.holding.suspect = true;
  await t.rejects(mend(mover, filling.registry, filling.holding, signal, log), { code: "Unavailable" });
  t.ok(filling.holding.suspect, "it is still to be proved");
});

t.test("nothing is asked for a filling one that is not suspect, or that has no layout yet", async (t) => {
  const mover = moverWith(async () => {
    throw new Error("no order is needed");
  });
  const { registry, holding } = await holdingIn("filling");
  await mend(mover, registry, holding, signal, log);
  holding.suspect = true;
  holding.layout = undefined;
  await mend(mover, registry, holding, signal, log);
  t.notOk(holding.suspect);
});
