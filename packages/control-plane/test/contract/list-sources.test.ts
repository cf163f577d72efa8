// contract.md, ListSources: what filters, what does not, and in which order.
import { setTimeout as sleep } from "node:timers/promises";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { HoldingState, NodeState, Tier } from "@weightline/proto/common";
import { NodeService } from "@weightline/proto/node";
import { SourceStatus } from "@weightline/proto/p2p";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

/** Past the resolution of updated_at. */
const LATER_MS = 5;

onEveryBackend(async (t, { p2p, channel, ready }, start) => {
  const idsOf = async (request: object) => (await p2p.listSources(request)).instances.map(({ workerId }) => workerId);

  t.test("no identity is no filter by identity", async (t) => {
    const [one, other] = [await ready({ revision: "a" }), await ready({ modelName: "other" })];
    const listed = await idsOf({});
    t.ok(listed.includes(one.workerId) && listed.includes(other.workerId));
  });

  t.test("an identity whose model_name is empty is no filter, whatever else it has", async (t) => {
    const one = await ready({ revision: "b" });
    t.ok(
      (await idsOf({ identity: { modelName: "", revision: "elsewhere", tensorParallelSize: 3 } })).includes(
        one.workerId,
      ),
    );
  });

  t.test(
    "an identity filters by its computed id: letters' case counts for nothing, every other change does",
    async (t) => {
      const { workerId } = await ready({ revision: "computed" });
      t.same(await idsOf({ identity: identityOf({ revision: "COMPUTED", modelName: "DEEPSEEK-AI/deepseek-v3" }) }), [
        workerId,
      ]);
      for (const change of [
        { tensorParallelSize: 4 },
        { dtype: "fp8" },
        { mxVersion: "" },
        { extraParameters: { a: "b" } },
      ]) {
        t.same(await idsOf({ identity: identityOf({ revision: "computed", ...change }) }), []);
      }
    },
  );

  t.test("an unknown number of status_filter is no filter by status", async (t) => {
    const identity = identityOf({ revision: "status" });
    const { workerId } = await ready({ revision: "status" });
    await p2p.publishMetadata({ identity, workerId: "status-new", worker: {} });
    for (const statusFilter of [4, 77, -1, 2_147_483_647]) {
      t.same(
        (await idsOf({ identity, statusFilter })).toSorted(),
        ["status-new", workerId].toSorted(),
        `${statusFilter}`,
      );
    }
  });

  t.test("status_filter: each known number, 0 included", async (t) => {
    const identity = identityOf({ revision: "each status" });
    for (const status of [SourceStatus.UNKNOWN, SourceStatus.INITIALIZING, SourceStatus.READY, SourceStatus.STALE]) {
      const workerId = `status-${status}`;
      const { mxSourceId } = await p2p.publishMetadata({ identity, workerId, worker: {} });
      t.ok((await p2p.updateStatus({ mxSourceId, workerId, status })).success);
    }
    for (const statusFilter of [0, 1, 2, 3]) {
      t.same(await idsOf({ identity, statusFilter }), [`status-${statusFilter}`]);
    }
    t.equal((await idsOf({ identity })).length, 4, "absent: all");
  });

  t.test("model_name_filter is exact and case-sensitive", async (t) => {
    const identity = identityOf({ revision: "names" });
    const { workerId } = await ready({ revision: "names" });
    t.same(await idsOf({ identity, modelNameFilter: "deepseek-ai/DeepSeek-V3" }), [workerId]);
    for (const modelNameFilter of [
      "deepseek-ai/deepseek-v3",
      "deepseek-ai/DeepSeek-V",
      "DeepSeek-V3",
      "deepseek-ai/*",
    ]) {
      t.same(await idsOf({ identity, modelNameFilter }), [], modelNameFilter);
    }
    t.ok((await idsOf({ modelNameFilter: "deepseek-ai/DeepSeek-V3" })).includes(workerId), "without an identity too");
  });

  t.test("worker_rank_filter is exact, 0 included", async (t) => {
    const identity = identityOf({ revision: "ranks" });
    const zero = await ready({ revision: "ranks" });
    const five = await ready({ revision: "ranks" }, { workerRank: 5 });
    t.same(await idsOf({ identity, workerRankFilter: 5 }), [five.workerId]);
    t.same(await idsOf({ identity, workerRankFilter: 0 }), [zero.workerId]);
    t.same(await idsOf({ identity, workerRankFilter: 0xffff_ffff }), []);
  });

  t.test("identity and READY alone give all ranks back", async (t) => {
    const identity = identityOf({ revision: "all ranks" });
    const workers = [];
    for (const workerRank of [0, 1, 2, 3]) {
      workers.push((await ready({ revision: "all ranks" }, { workerRank })).workerId);
    }
    t.same((await idsOf({ identity, statusFilter: SourceStatus.READY })).toSorted(), workers.toSorted());
  });

  t.test("training_step comes from extra_parameters `training_step`, else from `version`", async (t) => {
    const step = async (extraParameters: Record<string, string>) => {
      const { workerId } = await ready({ revision: "steps", extraParameters });
      const { instances } = await p2p.listSources({ identity: identityOf({ revision: "steps", extraParameters }) });
      return instances.find((instance) => instance.workerId === workerId)?.trainingStep;
    };
    t.equal(await step({ training_step: "7", version: "99" }), 7n);
    t.equal(await step({ version: "5" }), 5n);
    t.equal(await step({ training_step: "0" }), 0n, "0 is a step");
    t.equal(await step({}), undefined);
  });

  t.test("a training step that is no number of 64 bits is none, and spoils no list", async (t) => {
    const bad = ["18446744073709551616", "99999999999999999999", "-1", "1.5", "", "abc", "0x10", " 7"];
    for (const [i, training_step] of bad.entries()) {
      const extraParameters = { training_step };
      const { workerId } = await ready({ revision: `bad ${i}`, extraParameters });
      t.match(
        (await p2p.listSources({ identity: identityOf({ revision: `bad ${i}`, extraParameters }) })).instances,
        [{ workerId, trainingStep: undefined }],
        training_step,
      );
    }
    const greatest = { training_step: "18446744073709551615" };
    await ready({ revision: "greatest", extraParameters: greatest });
    t.match(
      (await p2p.listSources({ identity: identityOf({ revision: "greatest", extraParameters: greatest }) })).instances,
      [{ trainingStep: 0xffff_ffff_ffff_ffffn }],
    );
    t.ok((await idsOf({})).length > bad.length, "the whole list is given");
  });

  t.test("min_training_step: at it stays, below it and without a step goes", async (t) => {
    for (const extraParameters of [
      { training_step: "10" },
      { training_step: "11" },
      { version: "12" },
      { training_step: "9" },
      {},
    ]) {
      await ready({ modelName: "rl", extraParameters });
    }
    const steps = async (minTrainingStep: bigint) =>
      (await p2p.listSources({ modelNameFilter: "rl", minTrainingStep })).instances
        .map(({ trainingStep }) => trainingStep)
        .toSorted();
    t.same(await steps(10n), [10n, 11n, 12n]);
    t.same(await steps(0n), [10n, 11n, 12n, 9n].toSorted(), "0 drops only those without one");
    t.same(await steps(0xffff_ffff_ffff_ffffn), []);
  });

  t.test("min_updated_at: at it stays, older goes", async (t) => {
    const identity = identityOf({ revision: "since" });
    await ready({ revision: "since" });
    const [instance] = (await p2p.listSources({ identity })).instances;
    const at = instance?.updatedAt ?? 0n;
    t.equal((await idsOf({ identity, minUpdatedAt: at })).length, 1);
    t.equal((await idsOf({ identity, minUpdatedAt: at + 1n })).length, 0);
    t.equal((await idsOf({ identity, minUpdatedAt: -(2n ** 63n) })).length, 1);
    t.equal((await idsOf({ identity, minUpdatedAt: 2n ** 63n - 1n })).length, 0);
  });

  t.test("filters all apply at once", async (t) => {
    const identity = identityOf({ revision: "together" });
    await ready({ revision: "together" });
    const { workerId } = await ready({ revision: "together" }, { workerRank: 1 });
    const request = {
      identity,
      statusFilter: SourceStatus.READY,
      workerRankFilter: 1,
      modelNameFilter: identity.modelName,
    };
    t.same(await idsOf({ ...request, minUpdatedAt: 1n }), [workerId]);
    t.same(await idsOf({ ...request, minUpdatedAt: 1n, minTrainingStep: 0n }), []);
  });

  t.test("newest updated_at first; a heartbeat moves a worker to the front", async (t) => {
    const identity = identityOf({ revision: "order" });
    const workers = [];
    for (let i = 0; i < 3; i++) {
      workers.unshift(await ready({ revision: "order" }));
      await sleep(LATER_MS);
    }
    t.same(
      await idsOf({ identity }),
      workers.map(({ workerId }) => workerId),
    );
    const [newest, middle, oldest] = workers;
    await p2p.updateStatus({
      mxSourceId: oldest?.sourceId ?? "",
      workerId: oldest?.workerId ?? "",
      status: SourceStatus.READY,
    });
    t.same(
      await idsOf({ identity }),
      [oldest, newest, middle].map((worker) => worker?.workerId),
    );
    const times = (await p2p.listSources({ identity })).instances.map(({ updatedAt }) => updatedAt);
    t.same(
      times,
      times.toSorted((a, b) => Number(b - a)),
    );
  });

  t.test("limit: below, at and above the count; 0 is none; absent is all", async (t) => {
    const identity = identityOf({ revision: "limit" });
    const all = [];
    for (let i = 0; i < 3; i++) {
      all.unshift((await ready({ revision: "limit" })).workerId);
      await sleep(LATER_MS);
    }
    for (const limit of [0, 1, 2, 3, 4, 0xffff_ffff]) {
      t.same(await idsOf({ identity, limit }), all.slice(0, limit), `${limit}`);
    }
    t.same(await idsOf({ identity }), all);
  });

  t.test("the limit counts after filters: newer ones that are not READY take no place", async (t) => {
    const identity = identityOf({ revision: "limit after" });
    const { workerId } = await ready({ revision: "limit after" });
    for (let i = 0; i < 5; i++) {
      await sleep(LATER_MS);
      await p2p.publishMetadata({ identity, workerId: `unready-${i}`, worker: {} });
    }
    t.same(await idsOf({ identity, statusFilter: SourceStatus.READY, limit: 1 }), [workerId]);
  });

  t.test("what is not fresh is dropped from READY before the limit, and comes back with its heartbeat", async (t) => {
    const plane = await start(t as never, { env: { MX_HEARTBEAT_TIMEOUT_SECS: "1" } });
    const identity = identityOf({ revision: "fresh" });
    const [silent, beating] = [await plane.ready({ revision: "fresh" }), await plane.ready({ revision: "fresh" })];
    const beat = ({ sourceId, workerId }: typeof silent) =>
      plane.p2p.updateStatus({ mxSourceId: sourceId, workerId, status: SourceStatus.READY });
    const listed = async (request: object = {}) =>
      (await plane.p2p.listSources({ identity, statusFilter: SourceStatus.READY, ...request })).instances.map(
        ({ workerId }) => workerId,
      );
    t.equal((await listed()).length, 2);
    const end = performance.now() + 20_000;
    while ((await listed()).includes(silent.workerId) && performance.now() < end) {
      await beat(beating);
      await sleep(50);
    }
    t.same(await listed(), [beating.workerId]);
    t.same(await listed({ limit: 1 }), [beating.workerId]);
    t.equal((await plane.p2p.listSources({ identity })).instances.length, 2, "without the filter it is listed still");
    const { worker } = await plane.p2p.getMetadata({ mxSourceId: silent.sourceId, workerId: silent.workerId });
    t.equal(worker?.status, SourceStatus.STALE, "Get agrees");
    t.ok((await beat(silent)).success);
    t.equal((await listed()).length, 2);
  });

  t.test(
    "instances have name, rank, accelerator and topology; layout_signature and training_step only when known",
    async (t) => {
      const { sourceId, workerId } = await ready(
        { revision: "fields" },
        { workerRank: 2, topology: { rack: "7", zone: "" } },
      );
      const [instance] = (await p2p.listSources({ identity: identityOf({ revision: "fields" }) })).instances;
      t.match(instance, {
        mxSourceId: sourceId,
        workerId,
        modelName: "deepseek-ai/DeepSeek-V3",
        workerRank: 2,
        accelerator: "cuda",
        topology: { rack: "7", zone: "" },
      });
      t.equal(instance?.layoutSignature, undefined);
      t.equal(instance?.trainingStep, undefined);
      t.equal(instance?.sourceLoad, undefined);
    },
  );

  t.test("what agents announce is listed as READY workers of accelerator cpu with weightline.kind", async (t) => {
    const identity = filesIdentity("announced-model");
    const holdingId = "c".repeat(32);
    await channel.client(NodeService).announce({
      node: "announcing",
      epoch: 1n,
      sequence: 1n,
      bootId: "b",
      storeId: "s",
      address: "127.0.0.1:7000",
      ttlMs: 60_000,
      state: NodeState.READY,
      holdings: {
        holdings: [
          {
            holdingId,
            state: HoldingState.COMPLETE,
            tier: Tier.DRAM,
            identities: [{ identity, rank: 1, sourceId: computeSourceId(identity) }],
          },
        ],
      },
    });
    const [instance, ...more] = (await p2p.listSources({ identity, statusFilter: SourceStatus.READY })).instances;
    t.same(more, []);
    t.match(instance, { workerId: `${holdingId}-1`, workerRank: 1, accelerator: "cpu", modelName: "announced-model" });
    const got = await p2p.getMetadata({ mxSourceId: instance?.mxSourceId ?? "", workerId: instance?.workerId ?? "" });
    t.match(got, {
      found: true,
      worker: {
        status: SourceStatus.READY,
        workerGrpcEndpoint: "127.0.0.1:7000",
        agentName: "announcing",
        accelerator: "cpu",
      },
      identity: { extraParameters: { "weightline.kind": "files" } },
    });
  });
});
