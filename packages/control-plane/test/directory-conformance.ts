import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type Directory, readWorker, type WorkerQuery } from "@weightline/control-plane";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { HoldingSchema, HoldingState, NodeState, Tier } from "@weightline/proto/common";
import { type AnnounceRequest, AnnounceRequestSchema, AnnounceVerdict } from "@weightline/proto/node";
import {
  ListSourcesResponseSchema,
  SourceIdentitySchema,
  SourceStatus,
  WorkerMetadataSchema,
} from "@weightline/proto/p2p";
import type { Test } from "tap";

/** What a directory under test is made with, and how its time passes. */
export interface DirectoryUnderTest {
  directory: Directory;
  /** Lets this much time pass. */
  advance(ms: number): Promise<void>;
}

export interface ConformanceOptions {
  heartbeatTimeoutMs: number;
  gcTimeoutMs: number;
  make: () => Promise<DirectoryUnderTest>;
}

const MODEL = filesIdentity("m");
const SOURCE = computeSourceId(MODEL);

function holding(id: string, state: HoldingState = HoldingState.COMPLETE, modelName = "m", rank = 0) {
  const identity = filesIdentity(modelName);
  return create(HoldingSchema, {
    holdingId: id.repeat(32).slice(0, 32),
    state,
    tier: Tier.DRAM,
    identities: [{ identity, rank, sourceId: computeSourceId(identity) }],
    objectDigest: Buffer.alloc(32, id),
  });
}

function workerOf(fields: MessageInitShape<typeof WorkerMetadataSchema>) {
  return readWorker(toBinary(WorkerMetadataSchema, create(WorkerMetadataSchema, fields)));
}

function announce(
  change: Partial<Omit<AnnounceRequest, "$typeName">> & { holdingList?: ReturnType<typeof holding>[] } = {},
): AnnounceRequest {
  const { holdingList, ...fields } = change;
  return create(AnnounceRequestSchema, {
    node: "n",
    epoch: 10n,
    sequence: 1n,
    bootId: "boot-1",
    storeId: "store-1",
    address: "127.0.0.1:1",
    state: NodeState.READY,
    ttlMs: 3000,
    holdingsRevision: 1n,
    holdings: { holdings: holdingList ?? [holding("a")] },
    ...fields,
  });
}

/** What a query lists, decoded. */
async function listed(directory: Directory, query: WorkerQuery = {}) {
  return fromBinary(ListSourcesResponseSchema, await directory.list(query)).instances;
}

/** What a directory knows of one worker, decoded. */
async function found(directory: Directory, sourceId: string, workerId: string) {
  const worker = await directory.worker(sourceId, workerId);
  return worker && { ...worker, metadata: fromBinary(WorkerMetadataSchema, worker.metadata) };
}

/** What every directory must do, whatever it keeps its records in. */
export function directoryConformance(t: Test, options: ConformanceOptions): void {
  const test = (name: string, body: (t: Test, under: DirectoryUnderTest) => Promise<void>) =>
    t.test(name, async (t) => {
      const under = await options.make();
      t.teardown(() => under.directory.close());
      await body(t as Test, under);
    });
  const verdict = async (directory: Directory, request: AnnounceRequest) => (await directory.announce(request)).verdict;

  test("an announced node is listed with all it holds, and found by source and rank", async (t, { directory }) => {
    t.equal(await verdict(directory, announce()), AnnounceVerdict.ACCEPTED);
    t.match(await directory.nodes(), [
      {
        name: "n",
        state: NodeState.READY,
        epoch: 10n,
        address: "127.0.0.1:1",
        holdings: [{ state: HoldingState.COMPLETE }],
      },
    ]);
    t.match(await directory.lookup(SOURCE, 0), [{ node: "n", address: "127.0.0.1:1", epoch: 10n }]);
    t.same(await directory.lookup(SOURCE, 1), []);
    t.same(await directory.lookup("0".repeat(16), 0), []);
  });

  test("complete holders come first, then by name", async (t, { directory }) => {
    await directory.announce(announce({ node: "z", bootId: "z", storeId: "z" }));
    await directory.announce(
      announce({ node: "b", bootId: "b", storeId: "b", holdingList: [holding("b", HoldingState.FILLING)] }),
    );
    await directory.announce(announce({ node: "c", bootId: "c", storeId: "c", holdingList: [holding("c")] }));
    await directory.announce(
      announce({ node: "d", bootId: "d", storeId: "d", holdingList: [holding("d", HoldingState.DAMAGED)] }),
    );
    t.same(
      (await directory.lookup(SOURCE, 0)).map(({ node }) => node),
      ["c", "z", "b"],
    );
  });

  test("fencing: a late or repeated announce changes nothing, a lower epoch is told the higher one", async (t, {
    directory,
  }) => {
    await directory.announce(announce({ sequence: 5n, address: "127.0.0.1:5" }));
    t.equal(await verdict(directory, announce({ sequence: 4n, address: "127.0.0.1:4" })), AnnounceVerdict.ACCEPTED);
    t.equal(await verdict(directory, announce({ sequence: 5n, address: "127.0.0.1:4" })), AnnounceVerdict.ACCEPTED);
    t.match(await directory.nodes(), [{ address: "127.0.0.1:5" }]);
    t.match(await directory.announce(announce({ epoch: 9n, sequence: 99n })), {
      verdict: AnnounceVerdict.STALE,
      knownEpoch: 10n,
    });
    t.match(await directory.announce(announce({ epoch: 10n, sequence: 99n, bootId: "boot-2" })), {
      verdict: AnnounceVerdict.STALE,
      knownEpoch: 10n,
    });
    t.equal(
      await verdict(directory, announce({ epoch: 11n, bootId: "boot-2", address: "127.0.0.1:6" })),
      AnnounceVerdict.ACCEPTED,
      "a restart of the same store",
    );
    t.match(await directory.nodes(), [{ address: "127.0.0.1:6", epoch: 11n }]);
  });

  test("a second live node of one name is refused with the first one's address, until the first is lost", async (t, {
    directory,
    advance,
  }) => {
    await directory.announce(announce());
    const second = announce({ bootId: "boot-2", storeId: "store-2", epoch: 20n, address: "127.0.0.1:2" });
    t.match(await directory.announce(second), { verdict: AnnounceVerdict.NAME_TAKEN, takenBy: "127.0.0.1:1" });
    await advance(3100);
    t.equal(await verdict(directory, second), AnnounceVerdict.ACCEPTED);
    t.match(await directory.nodes(), [{ address: "127.0.0.1:2" }]);
  });

  test("a store under a new name replaces the old node at once", async (t, { directory }) => {
    await directory.announce(announce());
    await directory.announce(announce({ node: "renamed", bootId: "boot-2", epoch: 11n }));
    t.same(
      (await directory.nodes()).map(({ name }) => name),
      ["renamed"],
    );
  });

  test("holdings that did not change are left out; a directory that lacks them asks", async (t, { directory }) => {
    const { holdings: _, ...short } = announce({ sequence: 2n });
    const without = create(AnnounceRequestSchema, short);
    t.equal(await verdict(directory, without), AnnounceVerdict.RESEND);
    t.same(await directory.nodes(), [], "nothing is believed by then");
    await directory.announce(announce());
    t.equal(await verdict(directory, without), AnnounceVerdict.ACCEPTED);
    t.equal((await directory.lookup(SOURCE, 0)).length, 1, "they stay");
    t.equal(
      await verdict(directory, create(AnnounceRequestSchema, { ...short, sequence: 3n, holdingsRevision: 2n })),
      AnnounceVerdict.RESEND,
    );
  });

  test("a node that falls silent is lost, is not looked up, and is forgotten later; one that left is gone at once", async (t, {
    directory,
    advance,
  }) => {
    await directory.announce(announce());
    await advance(2900);
    t.match(await directory.nodes(), [{ state: NodeState.READY }]);
    await advance(200);
    t.match(await directory.nodes(), [{ state: NodeState.LOST }]);
    t.same(await directory.lookup(SOURCE, 0), []);
    t.same(await listed(directory), []);
    await advance(11 * 60_000);
    t.same(await directory.nodes(), []);
    await directory.announce(announce({ epoch: 12n }));
    await directory.leave("n", 11n, "boot-1");
    t.equal((await directory.nodes()).length, 1, "another epoch's leave changes nothing");
    await directory.leave("n", 12n, "boot-1");
    t.same(await directory.nodes(), []);
  });

  test("a draining node is listed and not looked up", async (t, { directory }) => {
    await directory.announce(announce({ state: NodeState.DRAINING }));
    t.match(await directory.nodes(), [{ state: NodeState.DRAINING }]);
    t.same(await directory.lookup(SOURCE, 0), []);
  });

  test("a holding's id is its live node's: no other node and no stock client takes its place", async (t, {
    directory,
    advance,
  }) => {
    const worker = `${"a".repeat(32)}-0`;
    await directory.announce(announce());
    const other = { node: "other", bootId: "other", storeId: "other", address: "127.0.0.1:2" };
    await directory.announce(announce(other));
    t.match(await directory.lookup(SOURCE, 0), [{ node: "n" }]);
    t.match(await found(directory, SOURCE, worker), { metadata: { agentName: "n" } });
    const published = { sourceId: SOURCE, workerId: worker, identity: MODEL, worker: workerOf({ workerRank: 0 }) };
    t.equal(await directory.publish(published), "taken");
    t.match(await found(directory, SOURCE, worker), { metadata: { agentName: "n" } });
    await directory.leave("other", 10n, "other");
    t.match(await directory.lookup(SOURCE, 0), [{ node: "n" }], "nor does the other's end take it away");
    await advance(3100);
    await directory.announce(announce({ ...other, epoch: 11n }));
    t.match(await directory.lookup(SOURCE, 0), [{ node: "other" }], "when it is lost, another may have it");
  });

  test("near names", async (t, { directory }) => {
    await directory.announce(announce({ holdingList: [holding("a", HoldingState.COMPLETE, "llama-7b", 3)] }));
    t.same(await directory.near("LLAMA-7b"), ["llama-7b (no revision, rank 3)"]);
    t.same(await directory.near("llama-8b"), ["llama-7b (no revision, rank 3)"]);
    t.same(await directory.near("entirely different"), []);
  });

  test("holdings are workers; those whose identity stock GPU clients ask for are not, from DRAM", async (t, {
    directory,
  }) => {
    const stock = create(SourceIdentitySchema, { modelName: "m", mxVersion: "0.5.0" });
    const hidden = holding("b");
    hidden.identities = [
      { $typeName: "weightline.common.v1.IdentityRank", identity: stock, rank: 0, sourceId: computeSourceId(stock) },
    ];
    await directory.announce(announce({ holdingList: [holding("a"), hidden, holding("c", HoldingState.FILLING)] }));
    const [complete, filling] = [`${"a".repeat(32)}-0`, `${"c".repeat(32)}-0`];
    t.same((await listed(directory)).map(({ workerId, accelerator }) => [workerId, accelerator]).sort(), [
      [complete, "cpu"],
      [filling, "cpu"],
    ]);
    t.match(await listed(directory, { status: SourceStatus.READY }), [{ workerId: complete }]);
    t.match(await listed(directory, { status: SourceStatus.INITIALIZING }), [{ workerId: filling }]);
    t.match(await found(directory, SOURCE, complete), {
      identity: { modelName: "m" },
      metadata: { status: SourceStatus.READY, workerGrpcEndpoint: "127.0.0.1:1", agentName: "n", accelerator: "cpu" },
    });
    t.equal(await found(directory, computeSourceId(stock), `${"b".repeat(32)}-0`), undefined);
    t.equal((await directory.lookup(computeSourceId(stock), 0)).length, 1, "an agent that asks for it finds it");
    t.match(await directory.sources("m"), [{ sourceId: SOURCE, modelName: "m", workers: [{}, {}] }]);
    t.same(await directory.sources("M"), [], "model names are case-sensitive");
  });

  const stockIdentity = create(SourceIdentitySchema, { modelName: "stock", mxVersion: "0.5.0" });
  const stockSource = computeSourceId(stockIdentity);
  const update = (
    directory: Directory,
    workerId: string,
    rank: number,
    status: SourceStatus = SourceStatus.READY,
    sourceLoad?: number,
  ) => directory.updateStatus({ sourceId: stockSource, workerId, rank, status, sourceLoad });

  test("stock workers: ready after their heartbeat, stale without, forgotten later", async (t, {
    directory,
    advance,
  }) => {
    await directory.publish({
      sourceId: stockSource,
      workerId: "w",
      identity: stockIdentity,
      worker: workerOf({ workerRank: 1, status: SourceStatus.READY }),
    });
    t.same(await listed(directory, { status: SourceStatus.READY }), [], "a fresh publish is not ready");
    t.equal(await update(directory, "w", 1, SourceStatus.READY, 0.5), "stored");
    t.match(await listed(directory, { status: SourceStatus.READY }), [{ workerId: "w", sourceLoad: 0.5 }]);
    t.equal(await update(directory, "w", 2), "unknown", "an unknown rank");
    t.equal(await update(directory, "x", 1), "unknown", "an unknown worker");
    await advance(options.heartbeatTimeoutMs + 100);
    t.same(await listed(directory, { status: SourceStatus.READY }), []);
    t.match(await listed(directory, { status: SourceStatus.STALE }), [{ workerId: "w" }]);
    t.match(await found(directory, stockSource, "w"), { metadata: { status: SourceStatus.STALE } });
    t.equal(await update(directory, "w", 1), "stored");
    t.match(await listed(directory, { status: SourceStatus.READY }), [{ workerId: "w" }]);
    t.equal((await listed(directory))[0]?.sourceLoad, undefined, "a heartbeat without a load clears it");
    await advance(options.gcTimeoutMs + 100);
    t.same(await listed(directory), []);
  });

  test("a second publish of a live worker does not hide it; one that never became ready goes", async (t, {
    directory,
    advance,
  }) => {
    await directory.publish({
      sourceId: stockSource,
      workerId: "w",
      identity: stockIdentity,
      worker: workerOf({ workerRank: 0 }),
    });
    await update(directory, "w", 0);
    await directory.publish({
      sourceId: stockSource,
      workerId: "w",
      identity: stockIdentity,
      worker: workerOf({ workerRank: 0, status: SourceStatus.INITIALIZING }),
    });
    t.equal((await listed(directory, { status: SourceStatus.READY })).length, 1);
    await directory.publish({
      sourceId: stockSource,
      workerId: "never",
      identity: stockIdentity,
      worker: workerOf({ workerRank: 0 }),
    });
    await advance(options.gcTimeoutMs + 100);
    t.same(await listed(directory), []);
  });

  test("one worker id with several ranks: listed by the last, got by the lowest; odd ids are ordinary ids", async (t, {
    directory,
    advance,
  }) => {
    for (const rank of [3, 1, 2]) {
      await directory.publish({
        sourceId: stockSource,
        workerId: "w",
        identity: stockIdentity,
        worker: workerOf({ workerRank: rank }),
      });
      await advance(1);
    }
    t.match(await listed(directory), [{ workerRank: 2 }]);
    t.match(await found(directory, stockSource, "w"), { metadata: { workerRank: 1 } });
    const odd = [
      "a:b",
      "status:0",
      "__proto__",
      "__attributes__",
      "constructor",
      "{a}",
      "} {",
      "é\u0000",
      "x".repeat(500),
    ];
    for (const workerId of odd) {
      await directory.publish({
        sourceId: stockSource,
        workerId,
        identity: stockIdentity,
        worker: workerOf({ workerRank: 0 }),
      });
      t.ok(await found(directory, stockSource, workerId), workerId);
      t.equal(await update(directory, workerId, 0), "stored");
    }
    t.equal((await listed(directory)).length, odd.length + 1);
    t.equal(await found(directory, stockSource, "toString"), undefined);
  });
}
