// What a directory counts is what it lists.
import { create, toBinary } from "@bufbuild/protobuf";
import { createMemoryDirectory, readWorker } from "@weightline/control-plane";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { HoldingSchema, HoldingState, NodeState, Tier } from "@weightline/proto/common";
import { AnnounceRequestSchema } from "@weightline/proto/node";
import { SourceIdentitySchema, WorkerMetadataSchema } from "@weightline/proto/p2p";
import t from "tap";

const OWN = filesIdentity("m");
const STOCK = create(SourceIdentitySchema, { modelName: "m" });

function holdings(node: number) {
  return [
    [HoldingState.COMPLETE, Tier.DRAM, [OWN, filesIdentity(`m${node}`)]],
    [HoldingState.FILLING, Tier.DRAM, [STOCK]],
    [HoldingState.DAMAGED, Tier.VRAM, [STOCK]],
    [HoldingState.EVICTING, Tier.VRAM, [STOCK, OWN]],
  ].map(([state, tier, identities], i) =>
    create(HoldingSchema, {
      holdingId: `${node}${i}`.padStart(32, "0"),
      state: state as HoldingState,
      tier: tier as Tier,
      identities: (identities as (typeof OWN)[]).map((identity) => ({
        identity,
        rank: 0,
        sourceId: computeSourceId(identity),
      })),
    }),
  );
}

t.test("the memory directory counts without making lists, and counts the same", async (t) => {
  let now = 0;
  const clock = { monotonicMs: () => now, unixMs: () => 2_000_000_000_000 };
  const directory = createMemoryDirectory({
    heartbeatTimeoutMs: 90_000,
    gcTimeoutMs: 3_600_000,
    announceIntervalMs: 10_000,
    reaperIntervalMs: 1,
    clock,
  });
  const same = async (expected: { nodes: object; sources: number; workers: number }) => {
    t.same(await directory.size(), expected);
    const sources = await directory.sources("");
    const workers = sources.reduce((sum, source) => sum + source.workers.length, 0);
    t.same([sources.length, workers], [expected.sources, expected.workers], "as it lists them");
    now += 10_000;
  };
  await same({ nodes: { ready: 0, draining: 0, lost: 0 }, sources: 0, workers: 0 });
  for (const [node, state, ttlMs] of [
    [1, NodeState.READY, 3_000_000],
    [2, NodeState.DRAINING, 3_000_000],
    [3, NodeState.READY, 15_000],
  ] as const) {
    await directory.announce(
      create(AnnounceRequestSchema, {
        node: `n${node}`,
        epoch: 1n,
        sequence: 1n,
        bootId: `b${node}`,
        storeId: `s${node}`,
        address: "127.0.0.1:1",
        state,
        ttlMs,
        holdingsRevision: 1n,
        holdings: { holdings: holdings(node) },
      }),
    );
  }
  for (const [workerId, workerRank] of [
    ["one", 0],
    ["one", 1],
    ["two", 0],
  ] as const) {
    const worker = readWorker(toBinary(WorkerMetadataSchema, create(WorkerMetadataSchema, { workerRank })));
    await directory.publish({ sourceId: computeSourceId(STOCK), workerId, identity: STOCK, worker });
  }
  await same({ nodes: { ready: 2, draining: 1, lost: 0 }, sources: 5, workers: 11 });
  now += 10_000;
  await same({ nodes: { ready: 1, draining: 1, lost: 1 }, sources: 4, workers: 8 });
  await directory.leave("n1", 1n, "b1");
  await same({ nodes: { ready: 0, draining: 1, lost: 1 }, sources: 3, workers: 5 });
});
