// contract.md, PublishMetadata: the verdict is in the reply, and what was published comes back as it was.
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { computeSourceId } from "@weightline/proto";
import { BackendFramework, MxSourceType, SourceStatus } from "@weightline/proto/p2p";
import { createLogger } from "@weightline/runtime";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

const NOTHING = { mxSourceId: "", workerId: "" };
const KIB = 1024;

onEveryBackend(async (t, { p2p, ready }, start) => {
  t.test("no identity: `identity is required`, ids empty", async (t) => {
    const request = { workerId: "w", worker: {} };
    t.match(await p2p.publishMetadata(request), { success: false, message: "identity is required", ...NOTHING });
  });

  t.test("an empty model_name: `identity.model_name is required`, ids empty", async (t) => {
    const request = { identity: identityOf({ modelName: "" }), workerId: "w", worker: {} };
    t.match(await p2p.publishMetadata(request), {
      success: false,
      message: "identity.model_name is required",
      ...NOTHING,
    });
  });

  t.test("an empty worker_id: `worker_id is required`, ids empty", async (t) => {
    const request = { identity: identityOf(), worker: {} };
    t.match(await p2p.publishMetadata(request), { success: false, message: "worker_id is required", ...NOTHING });
  });

  t.test("no worker: `worker is required`, ids empty", async (t) => {
    const request = { identity: identityOf(), workerId: "w" };
    t.match(await p2p.publishMetadata(request), { success: false, message: "worker is required", ...NOTHING });
  });

  t.test("of several faults the first is told: identity, model_name, worker_id, worker", async (t) => {
    const told = async (request: object) => (await p2p.publishMetadata(request)).message;
    t.equal(await told({}), "identity is required");
    t.equal(await told({ identity: {} }), "identity.model_name is required");
    t.equal(await told({ identity: identityOf() }), "worker_id is required");
  });

  t.test("what was refused is not there", async (t) => {
    const identity = identityOf({ revision: "refused" });
    await p2p.publishMetadata({ identity, workerId: "w" });
    await p2p.publishMetadata({ identity, worker: {} });
    t.same((await p2p.listSources({ identity })).instances, []);
  });

  t.test("ok: success, the identity's mx_source_id, worker_id echoed", async (t) => {
    t.match(await p2p.publishMetadata({ identity: identityOf(), workerId: "echo", worker: {} }), {
      success: true,
      mxSourceId: computeSourceId(identityOf()),
      workerId: "echo",
    });
  });

  t.test("mx_version is hashed: clients of two versions share no source id", async (t) => {
    const [older, newer] = [await ready({ mxVersion: "0.5.1" }), await ready({ mxVersion: "0.7.0" })];
    t.not(older.sourceId, newer.sourceId);
  });

  t.test("what is not hashed shares one id: rank, worker_id, accelerator, endpoints, topology, tensors", async (t) => {
    const one = await ready({ revision: "unhashed" });
    const other = await ready(
      { revision: "unhashed" },
      {
        workerRank: 7,
        accelerator: "xpu",
        workerGrpcEndpoint: "h:1",
        metadataEndpoint: "h:2",
        topology: { rack: "1" },
        sourcePayload: { case: "tensorSource", value: { tensors: [{ name: "t" }] } },
      },
    );
    t.equal(one.sourceId, other.sourceId);
  });

  t.test("a fresh publish is not READY until UpdateStatus(READY), whatever status it carries", async (t) => {
    const { UNKNOWN, INITIALIZING, READY, STALE } = SourceStatus;
    for (const status of [UNKNOWN, INITIALIZING, READY, STALE, 77, -1] as SourceStatus[]) {
      const identity = identityOf({ revision: `fresh ${status}` });
      const { mxSourceId } = await p2p.publishMetadata({ identity, workerId: "w", worker: { status } });
      t.same((await p2p.listSources({ identity, statusFilter: SourceStatus.READY })).instances, []);
      const told = (await p2p.getMetadata({ mxSourceId, workerId: "w" })).worker?.status;
      t.ok(
        told === INITIALIZING || told === UNKNOWN || (status === STALE && told === STALE),
        `${told} after ${status}`,
      );
      await p2p.updateStatus({ mxSourceId, workerId: "w", status: SourceStatus.READY });
      t.equal((await p2p.listSources({ identity, statusFilter: SourceStatus.READY })).instances.length, 1);
    }
  });

  t.test("a second publish of a live worker does not hide it, and what it says counts at once", async (t) => {
    const identity = identityOf({ revision: "again" });
    const { sourceId, workerId } = await ready({ revision: "again" }, { accelerator: "cuda", topology: { rack: "1" } });
    await p2p.updateStatus({ mxSourceId: sourceId, workerId, status: SourceStatus.READY, sourceLoad: 0.25 });
    for (const status of [SourceStatus.UNKNOWN, SourceStatus.INITIALIZING, SourceStatus.READY]) {
      const again = await p2p.publishMetadata({
        identity,
        workerId,
        worker: { status, accelerator: "xpu", topology: { rack: `of ${status}` } },
      });
      t.ok(again.success);
      t.match((await p2p.listSources({ identity, statusFilter: SourceStatus.READY })).instances, [
        { workerId, accelerator: "xpu", topology: { rack: `of ${status}` }, sourceLoad: 0.25 },
      ]);
      t.match((await p2p.getMetadata({ mxSourceId: sourceId, workerId })).worker, {
        status: SourceStatus.READY,
        accelerator: "xpu",
      });
    }
  });

  t.test("every field comes back from Get as it was published, unsigned numbers up to their last bit", async (t) => {
    const tensors = [
      {
        name: "model.layers.0.weight",
        addr: 0xffff_ffff_ffff_ffffn,
        size: 0x8000_0000_0000_0001n,
        deviceId: 0xffff_ffff,
        dtype: "BF16",
      },
      { name: "\u{1F600} \u0130", addr: 9_007_199_254_740_993n, size: 0n, deviceId: 0, dtype: "" },
    ];
    const worker = {
      workerRank: 0xffff_ffff,
      backendMetadata: { case: "nixlMetadata" as const, value: randomBytes(KIB) },
      metadataEndpoint: "[fd00::1]:5555",
      agentName: "agent-\u00e9",
      workerGrpcEndpoint: "10.0.0.1:7000",
      accelerator: "cuda",
      topology: { rack: "7", "": "empty", ["__proto__"]: "x", "10": "ten" },
      sourcePayload: { case: "tensorSource" as const, value: { tensors } },
    };
    const identity = identityOf({
      revision: "Every Field",
      mxSourceType: MxSourceType.LORA,
      backendFramework: BackendFramework.SGLANG,
      extraParameters: { Key: "Value", "10": "ten" },
      cudaVersion: "12.9",
    });
    const { mxSourceId } = await p2p.publishMetadata({
      identity,
      workerId: "full",
      worker,
      podName: "p",
      podUid: "u",
      podNamespace: "n",
    });
    const got = await p2p.getMetadata({ mxSourceId, workerId: "full" });
    t.match(got.worker, worker);
    t.same(got.worker?.topology, worker.topology);
    t.same(Buffer.from((got.worker?.backendMetadata.value as Uint8Array) ?? []), worker.backendMetadata.value);
    t.match(
      got.identity,
      { modelName: "deepseek-ai/DeepSeek-V3", revision: "Every Field", mxSourceType: 1 },
      "in its own case",
    );
    t.same(got.identity?.extraParameters, { Key: "Value", "10": "ten" });
  });

  t.test("the other sides of both oneofs come back: transfer_engine_session_id, artifact_source", async (t) => {
    const worker = {
      backendMetadata: { case: "transferEngineSessionId" as const, value: "10.0.0.1:1234" },
      sourcePayload: {
        case: "artifactSource" as const,
        value: { artifactId: "a", totalSize: 0xffff_ffff_ffff_ffffn, fileCount: 3, chunkCount: 4, nodeRank: 5 },
      },
    };
    const { sourceId, workerId } = await ready({ revision: "oneofs" }, worker);
    t.match((await p2p.getMetadata({ mxSourceId: sourceId, workerId })).worker, worker);
  });

  t.test("nixl_metadata is opaque: 1.4 MB of any bytes, and none", async (t) => {
    for (const value of [randomBytes(1400 * KIB), Buffer.alloc(0)]) {
      const { sourceId, workerId } = await ready(
        { revision: "opaque" },
        { backendMetadata: { case: "nixlMetadata", value } },
      );
      const { worker } = await p2p.getMetadata({ mxSourceId: sourceId, workerId });
      t.equal(worker?.backendMetadata.case, "nixlMetadata", "present even when empty");
      t.ok(Buffer.from(worker?.backendMetadata.value as Uint8Array).equals(value));
    }
  });

  t.test("updated_at is the time of receipt, whatever the worker says of it", async (t) => {
    const hour = 3_600_000;
    for (const updatedAt of [0n, -1n, 1n, BigInt(Date.now() - hour), BigInt(Date.now() + hour)]) {
      const before = Date.now();
      const { sourceId, workerId } = await ready({ revision: `time ${updatedAt}` }, { updatedAt });
      const { worker } = await p2p.getMetadata({ mxSourceId: sourceId, workerId });
      const told = Number(worker?.updatedAt);
      t.ok(told >= before - 5 && told <= Date.now() + 5, `${told} for ${updatedAt}`);
      const [listed] = (await p2p.listSources({ identity: identityOf({ revision: `time ${updatedAt}` }) })).instances;
      t.equal(listed?.updatedAt, worker?.updatedAt, "List and Get agree");
    }
  });

  t.test(
    "field case 37: a worker's clock that is over 5 s off is one warning, and nothing else comes of it",
    async (t) => {
      const folder = mkdtempSync(`${tmpdir()}/weightline-skew-`);
      t.teardown(() => rmSync(folder, { recursive: true }));
      const file = `${folder}/log`;
      const log = createLogger({ program: "test", level: "warn", format: "json", file });
      const plane = await start(t, { log });
      const off = async (workerId: string, ms: number | undefined) => {
        const updatedAt = ms === undefined ? 0n : BigInt(Date.now() + ms);
        const identity = identityOf({ revision: "skew" });
        const { mxSourceId } = await plane.p2p.publishMetadata({ identity, workerId, worker: { updatedAt } });
        await plane.p2p.updateStatus({ mxSourceId, workerId, status: SourceStatus.READY });
        const listed = await plane.p2p.listSources({ identity, statusFilter: SourceStatus.READY });
        t.ok(
          listed.instances.some((instance) => instance.workerId === workerId),
          `${workerId} is READY`,
        );
      };
      const minutes = 60_000;
      await off("none", undefined);
      await off("near", -3000);
      for (let i = 0; i < 3; i++) {
        await off("behind", -10 * minutes);
        await off("ahead", 10 * minutes);
      }
      const lines = readFileSync(file, "utf8")
        .split("\n")
        .filter((line) => line.includes('"clock-skew"'));
      const told = lines
        .map((line) => JSON.parse(line))
        .map(({ worker, ahead_ms }) => [worker, Math.round(ahead_ms / minutes)]);
      t.same(told, [
        ["behind", -10],
        ["ahead", 10],
      ]);
    },
  );

  t.test("records that never become READY do not stay for ever; those that heartbeat do", async (t) => {
    const plane = await start(t as never, { env: { MX_GC_TIMEOUT_SECS: "1", MX_HEARTBEAT_TIMEOUT_SECS: "1" } });
    const identity = identityOf({ revision: "never ready" });
    const { mxSourceId } = await plane.p2p.publishMetadata({ identity, workerId: "never", worker: {} });
    const kept = await plane.ready({ revision: "never ready" });
    const found = async (workerId: string) => (await plane.p2p.getMetadata({ mxSourceId, workerId })).found;
    t.ok(await found("never"));
    const end = performance.now() + 20_000;
    while ((await found("never")) && performance.now() < end) {
      await plane.p2p.updateStatus({ mxSourceId, workerId: kept.workerId, status: SourceStatus.READY });
      await plane.p2p.listSources({});
      await sleep(100);
    }
    t.notOk(await found("never"));
    t.ok(await found(kept.workerId));
  });
});
