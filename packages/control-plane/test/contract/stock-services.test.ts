// contract.md: the services beside P2pService.
import { setTimeout as sleep } from "node:timers/promises";
import { Code } from "@connectrpc/connect";
import { ApiService } from "@weightline/proto/api";
import { Health, HealthCheckResponse_ServingStatus as Serving } from "@weightline/proto/grpc-health";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { openHttp2, rawUnary } from "../../../../test/support/http2-grpc.ts";
import { onEveryBackend } from "./under-contract.ts";

const NAMES = [
  "model_express.p2p.P2pService",
  "model_express.model.ModelService",
  "model_express.health.HealthService",
  "model_express.api.ApiService",
  "weightline.node.v1.NodeService",
];

onEveryBackend(async (t, { channel, controlPlane }, start) => {
  const api = channel.client(ApiService);
  const models = channel.client(ModelService);
  const health = channel.client(Health);

  t.test("HealthService: version, status ok, uptime in seconds", async (t) => {
    const { version, status, uptime } = await channel.client(HealthService).getHealth({});
    t.match(version, /^\d+\.\d+\.\d+/);
    t.equal(status, "ok");
    t.ok(uptime >= 0n && uptime < 600n, `${uptime}`);
  });

  t.test("HealthService: uptime counts seconds", async (t) => {
    const uptime = async () => (await channel.client(HealthService).getHealth({})).uptime;
    const first = await uptime();
    const end = performance.now() + 10_000;
    while ((await uptime()) === first && performance.now() < end) {
      await sleep(50);
    }
    t.equal(await uptime(), first + 1n);
  });

  t.test('ApiService: ping answers {"message":"pong"}, whatever its payload', async (t) => {
    for (const payload of [undefined, new Uint8Array(), Buffer.from([0xff])]) {
      const reply = await api.sendRequest({ id: "1", action: "ping", ...(payload === undefined ? {} : { payload }) });
      t.ok(reply.success);
      t.equal(Buffer.from(reply.data ?? []).toString(), '{"message":"pong"}');
      t.equal(reply.error, undefined);
    }
  });

  t.test("ApiService: others are success=false, `Unknown action: X`", async (t) => {
    for (const action of ["fly", "", "PING", "ping ", "\u{1F600}"]) {
      t.match(await api.sendRequest({ action }), {
        success: false,
        error: `Unknown action: ${action}`,
        data: undefined,
      });
    }
  });

  t.test("ModelService: every call is UNAVAILABLE, and says what does the work instead", async (t) => {
    const refusal = { code: Code.Unavailable, rawMessage: /downloads no models.*mxctl load/ };
    const drained = async (stream: AsyncIterable<unknown>) => {
      for await (const _ of stream) {
        throw new Error("an item came");
      }
    };
    await t.rejects(drained(models.ensureModelDownloaded({ modelName: "m" })), refusal, "EnsureModelDownloaded");
    await t.rejects(drained(models.streamModelFiles({ modelName: "m" })), refusal, "StreamModelFiles");
    await t.rejects(models.listModelFiles({ modelName: "m" }), refusal, "ListModelFiles");
    await t.rejects(models.deleteModel({ modelName: "m" }), refusal, "DeleteModel");
  });

  t.test("RefitService and unknown methods are UNIMPLEMENTED", async (t) => {
    const session = await openHttp2(controlPlane.port);
    t.teardown(() => session.close());
    for (const path of [
      "/model_express.refit.RefitService/RegisterTrainer",
      "/model_express.p2p.P2pService/Fly",
      "/model_express.p2p.WorkerService/GetTensorManifest",
    ]) {
      t.equal((await rawUnary(session, path, Buffer.alloc(0))).code, Code.Unimplemented, path);
    }
    t.equal(
      (await rawUnary(session, "/model_express.health.HealthService/GetHealth", Buffer.alloc(0))).code,
      0,
      "the connection goes on",
    );
  });

  t.test("grpc.health.v1: every served name and the empty one are SERVING, others NOT_FOUND", async (t) => {
    for (const service of ["", ...NAMES]) {
      t.equal((await health.check({ service })).status, Serving.SERVING, service);
    }
    for (const service of ["nobody", "model_express.refit.RefitService", "model_express.p2p"]) {
      await t.rejects(health.check({ service }), { code: Code.NotFound }, service);
    }
  });

  t.test("grpc.health.v1: Watch tells an unknown name SERVICE_UNKNOWN and stays", async (t) => {
    const controller = new AbortController();
    const stream = health.watch({ service: "nobody" }, { signal: controller.signal })[Symbol.asyncIterator]();
    t.match(await stream.next(), { value: { status: Serving.SERVICE_UNKNOWN } });
    controller.abort();
    await t.rejects(stream.next(), { code: Code.Canceled });
  });

  t.test("grpc.health.v1: who watches hears of the drain before the end", async (t) => {
    const plane = await start(t);
    const streams = ["", NAMES[0] ?? ""].map((service) =>
      plane.channel.client(Health).watch({ service })[Symbol.asyncIterator](),
    );
    for (const stream of streams) {
      t.match(await stream.next(), { value: { status: Serving.SERVING } });
    }
    const stopped = plane.controlPlane.stop();
    for (const stream of streams) {
      t.match(await stream.next(), { value: { status: Serving.NOT_SERVING } });
      await t.rejects(stream.next(), { code: Code.Unavailable });
    }
    await stopped;
  });
});
