// The contract's rules, each driven through a generated client over a real connection.
import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { CONTROL_PLANE_OPTIONS, createControlPlane } from "@weightline/control-plane";
import { computeSourceId } from "@weightline/proto";
import { ApiService } from "@weightline/proto/api";
import { Health, HealthCheckResponse_ServingStatus as Serving } from "@weightline/proto/grpc-health";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { NodeService } from "@weightline/proto/node";
import { P2pService, SourceIdentitySchema, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel, createLogger, fromRpcError, readConfiguration } from "@weightline/runtime";
import t from "tap";

const { values } = readConfiguration({
  table: CONTROL_PLANE_OPTIONS,
  argv: ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"],
  env: {},
});
const log = createLogger({ program: "test", level: "error", format: "json", file: "" });
const controlPlane = await createControlPlane(values, log);
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: controlPlane.port }] });
t.teardown(async () => {
  channel.close();
  await controlPlane.stop();
});
const p2p = channel.client(P2pService);

const identity = (change: object = {}) =>
  create(SourceIdentitySchema, {
    modelName: "deepseek-ai/DeepSeek-V3",
    mxVersion: "0.5.0",
    tensorParallelSize: 8,
    ...change,
  });
let next = 0;
/** Publishes a worker that is ready. */
async function ready(change: object = {}, worker: object = {}): Promise<{ sourceId: string; workerId: string }> {
  const workerId = `w${next++}`;
  const published = await p2p.publishMetadata({
    identity: identity(change),
    workerId,
    worker: { workerRank: 0, accelerator: "cuda", ...worker },
  });
  await p2p.updateStatus({
    mxSourceId: published.mxSourceId,
    workerId,
    workerRank: "workerRank" in worker ? Number(worker.workerRank) : 0,
    status: SourceStatus.READY,
  });
  return { sourceId: published.mxSourceId, workerId };
}

t.test("Publish: what is missing is said in the reply, in this order, ids empty", async (t) => {
  const empty = { mxSourceId: "", workerId: "" };
  t.match(await p2p.publishMetadata({}), { success: false, message: "identity is required", ...empty });
  t.match(await p2p.publishMetadata({ identity: identity({ modelName: "" }) }), {
    success: false,
    message: "identity.model_name is required",
    ...empty,
  });
  t.match(await p2p.publishMetadata({ identity: identity() }), {
    success: false,
    message: "worker_id is required",
    ...empty,
  });
  t.match(await p2p.publishMetadata({ identity: identity(), workerId: "w" }), {
    success: false,
    message: "worker is required",
    ...empty,
  });
});

t.test("Publish ok: the identity's id, worker_id echoed", async (t) => {
  t.match(await p2p.publishMetadata({ identity: identity(), workerId: "echo", worker: {} }), {
    success: true,
    mxSourceId: computeSourceId(identity()),
    workerId: "echo",
  });
});

t.test("List: identity missing or without a name is no filter; else by the computed id", async (t) => {
  const one = await ready({ revision: "list" });
  await ready({ revision: "other" });
  t.ok((await p2p.listSources({})).instances.length >= 2);
  t.ok((await p2p.listSources({ identity: {} })).instances.length >= 2);
  t.match((await p2p.listSources({ identity: identity({ revision: "list" }) })).instances, [
    { mxSourceId: one.sourceId, workerId: one.workerId, modelName: "deepseek-ai/DeepSeek-V3", accelerator: "cuda" },
  ]);
  t.match(
    (await p2p.listSources({ identity: identity({ revision: "LIST" }) })).instances.length,
    1,
    "identities are lowercased",
  );
});

t.test("List: an unknown status number is no filter; model name is exact; rank is exact; min_updated_at", async (t) => {
  await ready({ revision: "filters" }, { workerRank: 5 });
  const of = async (filter: object) =>
    (await p2p.listSources({ identity: identity({ revision: "filters" }), ...filter })).instances.length;
  t.equal(await of({ statusFilter: 77 }), 1);
  t.equal(await of({ statusFilter: SourceStatus.READY }), 1);
  t.equal(await of({ statusFilter: SourceStatus.STALE }), 0);
  t.equal(await of({ modelNameFilter: "deepseek-ai/DeepSeek-V3" }), 1);
  t.equal(await of({ modelNameFilter: "deepseek-ai/deepseek-v3" }), 0);
  t.equal(await of({ workerRankFilter: 5 }), 1);
  t.equal(await of({ workerRankFilter: 0 }), 0);
  t.equal(await of({ minUpdatedAt: BigInt(Date.now() + 60_000) }), 0);
  t.equal(await of({ minUpdatedAt: 1n }), 1);
});

t.test(
  "List: min_training_step from training_step, else version; workers without one are dropped when it is set",
  async (t) => {
    await ready({ revision: "steps", extraParameters: { training_step: "7", version: "99" } });
    await ready({ revision: "steps", extraParameters: { version: "5" } });
    await ready({ revision: "steps", modelName: "steps", extraParameters: {} });
    const of = async (minTrainingStep?: bigint) =>
      (await p2p.listSources({ ...(minTrainingStep === undefined ? {} : { minTrainingStep }) })).instances
        .filter(({ trainingStep }) => trainingStep !== undefined)
        .map(({ trainingStep }) => trainingStep);
    t.same((await of()).toSorted(), [5n, 7n]);
    t.same(await of(6n), [7n]);
  },
);

t.test("List: newest first, what is not ready dropped before the limit", async (t) => {
  const old = await ready({ revision: "order" });
  await new Promise((resolve) => setTimeout(resolve, 5));
  const newer = await ready({ revision: "order" });
  await new Promise((resolve) => setTimeout(resolve, 5));
  await p2p.publishMetadata({ identity: identity({ revision: "order" }), workerId: "not-ready", worker: {} });
  const request = { identity: identity({ revision: "order" }), statusFilter: SourceStatus.READY };
  t.same(
    (await p2p.listSources(request)).instances.map(({ workerId }) => workerId),
    [newer.workerId, old.workerId],
  );
  t.same(
    (await p2p.listSources({ ...request, limit: 1 })).instances.map(({ workerId }) => workerId),
    [newer.workerId],
  );
});

t.test("Get: an empty id, an unknown one, a known one", async (t) => {
  t.match(await p2p.getMetadata({ mxSourceId: "", workerId: "w" }), { found: false, mxSourceId: "", workerId: "" });
  t.match(await p2p.getMetadata({ mxSourceId: "0".repeat(16), workerId: "nobody" }), {
    found: false,
    mxSourceId: "0".repeat(16),
    workerId: "nobody",
  });
  const { sourceId, workerId } = await ready(
    { revision: "get" },
    { backendMetadata: { case: "nixlMetadata", value: Buffer.from([0, 255, 1]) }, topology: { rack: "7" } },
  );
  const got = await p2p.getMetadata({ mxSourceId: sourceId, workerId });
  t.match(got, {
    found: true,
    mxSourceId: sourceId,
    workerId,
    identity: { modelName: "deepseek-ai/DeepSeek-V3" },
    worker: { status: SourceStatus.READY, topology: { rack: "7" } },
  });
  t.same(got.worker?.backendMetadata.value, Buffer.from([0, 255, 1]), "nixl_metadata is opaque");
});

t.test("UpdateStatus: verdicts in the reply; an unknown worker or rank is never success", async (t) => {
  t.match(await p2p.updateStatus({ workerId: "w" }), { success: false, message: "mx_source_id is required" });
  t.match(await p2p.updateStatus({ mxSourceId: "x" }), { success: false, message: "worker_id is required" });
  t.match(await p2p.updateStatus({ mxSourceId: "x", workerId: "w", status: 9 as never }), {
    success: false,
    message: "invalid status value: 9",
  });
  t.match(await p2p.updateStatus({ mxSourceId: "x", workerId: "w", status: SourceStatus.READY }), {
    success: false,
    message: /^Failed to update status: /,
  });
});

t.test("UpdateStatus: source_load is clamped; no number counts as none; 0 stays present", async (t) => {
  const { sourceId, workerId } = await ready({ revision: "load" });
  const after = async (sourceLoad?: number) => {
    t.ok(
      (
        await p2p.updateStatus({
          mxSourceId: sourceId,
          workerId,
          status: SourceStatus.READY,
          ...(sourceLoad === undefined ? {} : { sourceLoad }),
        })
      ).success,
    );
    return (await p2p.listSources({ identity: identity({ revision: "load" }) })).instances[0]?.sourceLoad;
  };
  t.same(
    [
      await after(0.5),
      await after(3),
      await after(-1),
      await after(Number.NaN),
      await after(Number.POSITIVE_INFINITY),
      await after(0),
      await after(),
    ],
    [0.5, 1, 0, undefined, undefined, 0, undefined],
  );
});

t.test("stock services: health, ping, models, and names of grpc.health.v1", async (t) => {
  t.match(await channel.client(HealthService).getHealth({}), { status: "ok", version: /\d/ });
  const api = channel.client(ApiService);
  t.equal(
    Buffer.from((await api.sendRequest({ id: "1", action: "ping" })).data ?? []).toString(),
    '{"message":"pong"}',
  );
  t.match(await api.sendRequest({ action: "fly" }), { success: false, error: "Unknown action: fly" });
  await t.rejects(channel.client(ModelService).listModelFiles({ modelName: "m" }), { code: Code.Unavailable });
  const health = channel.client(Health);
  for (const service of [
    "",
    "model_express.p2p.P2pService",
    "model_express.model.ModelService",
    "model_express.health.HealthService",
    "model_express.api.ApiService",
    "weightline.node.v1.NodeService",
  ]) {
    t.equal((await health.check({ service })).status, Serving.SERVING, service);
  }
  await t.rejects(health.check({ service: "nobody" }), { code: Code.NotFound });
});

t.test("a message above 100 MiB is refused, and the next call works", async (t) => {
  const big = Buffer.alloc(101 * 1024 * 1024);
  await t.rejects(
    p2p.publishMetadata({
      identity: identity(),
      workerId: "big",
      worker: { backendMetadata: { case: "nixlMetadata", value: big } },
    }),
    { code: Code.ResourceExhausted },
  );
  t.ok((await p2p.listSources({ limit: 1 })).instances.length <= 1);
});

t.test("announces that cannot be right name the field, the value and what is allowed", async (t) => {
  const nodes = channel.client(NodeService);
  const good = {
    node: "n",
    epoch: 1n,
    sequence: 1n,
    bootId: "b",
    storeId: "s",
    address: "127.0.0.1:1",
    ttlMs: 1000,
    holdings: {},
  };
  const refused = async (change: object) => {
    try {
      await nodes.announce({ ...good, ...change });
    } catch (error) {
      return fromRpcError(error);
    }
    throw new Error(`${JSON.stringify(change)} was taken`);
  };
  t.match(await refused({ node: "" }), { code: "InvalidArgument", field: "node" });
  t.match(await refused({ node: "x".repeat(254) }), { field: "node" });
  t.match(await refused({ address: "nowhere" }), { field: "announce.address", value: "nowhere" });
  t.match(await refused({ ttlMs: 0 }), { field: "ttl_ms", value: "0" });
  t.match(await refused({ epoch: 0n }), { field: "epoch" });
  t.match(await refused({ holdings: { holdings: [{ holdingId: "../x" }] } }), {
    field: "holdings[0].holding_id",
    value: "../x",
  });
  t.match(
    await refused({
      holdings: {
        holdings: [
          { holdingId: "a".repeat(32), identities: [{ identity: { modelName: "m" }, sourceId: "f".repeat(16) }] },
        ],
      },
    }),
    { field: "holdings[0].identities.source_id" },
  );
});

t.test("fills and transfers of nodes that do not answer are told as such", async (t) => {
  const nodes = channel.client(NodeService);
  await nodes.announce({
    node: "silent",
    epoch: 1n,
    sequence: 1n,
    bootId: "b",
    storeId: "s",
    address: "127.0.0.1:1",
    ttlMs: 60_000,
    state: 1,
    holdings: {},
  });
  const items = [];
  for await (const { node } of nodes.fillNodes({ nodes: ["silent"], identity: identity() })) {
    items.push(node);
  }
  t.match(items, [{ node: "silent", errorCode: "Unavailable", error: /cannot be reached/ }]);
  t.same((await nodes.listTransfers({})).silentNodes, ["silent"]);
  await t.rejects(
    async () => {
      for await (const _ of nodes.fillNodes({ nodes: ["nobody"], identity: identity() })) {
        // Nothing comes.
      }
    },
    { code: Code.NotFound },
  );
});
