// A cluster whose directory is Redis: two control planes, two agents, and Redis lost, frozen, flushed, moved to another
// server. Promises R3 and R4: what is held is attached all the while, and all is back within an announce or two.
import { symlinkSync, unlinkSync } from "node:fs";
import { Code } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Serving } from "@weightline/proto/grpc-health";
import { P2pService, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel, parseAddress } from "@weightline/runtime";
import t from "tap";
import { type Agent, createCluster, freePort } from "./support/cluster.ts";
import { until } from "./support/processes.ts";
import { createRedisServer } from "./support/redis-server.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const eventually = (what: string, holds: () => Promise<boolean>) => until(what, () => holds().catch(() => false));

t.test("Redis away, flushed and moved: nothing that is held is lost, nothing wrong is believed", async (t) => {
  const cluster = await createCluster();
  const [redis, other] = [await createRedisServer(), await createRedisServer()];
  t.teardown(async () => {
    await cluster.stop();
    await redis.remove();
    await other.remove();
  });
  // The name by which Redis is found, as DNS would give it.
  const name = `${cluster.folder}/redis.sock`;
  symlinkSync(redis.socket, name);
  const options = { env: { MX_METADATA_BACKEND: "redis", REDIS_URL: `unix://${name}` } };
  const flags = ["--announce-interval", "500ms", "--redis-timeout", "500ms"];
  const [metricsPort, secondPort] = [await freePort(), await freePort()];
  const first = await cluster.startControlPlane([...flags, "--metrics-port", String(metricsPort)], options);
  const firstAddress = cluster.controlPlane();
  await cluster.startControlPlane([...flags, "--metrics-port", String(secondPort)], options);
  const addresses = `${firstAddress},${cluster.controlPlane()}`;
  const agents: Agent[] = [];
  for (const agent of ["a", "b"]) {
    agents.push(await cluster.startAgent(agent, ["--control-plane", addresses, "--announce-interval", "500ms"]));
  }
  const [a, b] = agents as [Agent, Agent];
  const path = `${cluster.folder}/m.safetensors`;
  writeTensors(path, { w: { dtype: "U8", shape: [300_000] } });
  await cluster.load(a, path, "m");

  const channel = createGrpcChannel({ addresses: [parseAddress(firstAddress, "address")] });
  t.teardown(() => channel.close());
  const p2p = channel.client(P2pService);
  const health = async (service: string) => (await channel.client(Health).check({ service })).status;
  const readyz = async () => (await fetch(`http://127.0.0.1:${metricsPort}/readyz`)).status;
  const nodes = async () =>
    JSON.parse((await cluster.mxctl(["nodes", "--output", "json"])).stdout) as { name: string }[];
  const bothThere = async () => (await nodes()).length === 2 && (await p2p.listSources({})).instances.length > 0;
  const identity = { modelName: "stock", mxVersion: "0.5.0" };
  const publish = () => p2p.publishMetadata({ identity, workerId: "w", worker: { accelerator: "cuda" } });

  await eventually("both nodes and the holding are listed", bothThere);
  t.equal(await health(""), Serving.SERVING);
  t.match(await publish(), { success: true });

  await t.test("stopped: refused in words, not ready, and attaches go on", async (t) => {
    await redis.stop();
    await eventually("the loss is seen", async () => (await readyz()) === 503);
    t.equal(await health(P2pService.typeName), Serving.NOT_SERVING);
    t.match(await publish(), { success: false, message: /Redis/, mxSourceId: "" });
    await t.rejects(p2p.listSources({}), { code: Code.Unavailable });
    await t.rejects(p2p.getMetadata({ mxSourceId: "0".repeat(16), workerId: "w" }), { code: Code.Unavailable });
    t.match(await p2p.updateStatus({ mxSourceId: "0".repeat(16), workerId: "w", status: SourceStatus.READY }), {
      success: false,
    });
    t.equal(await a.python(`print(agent.acquire(model_name="m")["w"].nbytes)`), "300000");
    const metrics = await (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text();
    t.match(metrics, /weightline_backend_up\{backend="redis"\} 0/);
    t.match(first.output(), /"event":"backend-lost"/);
    await redis.start();
    await eventually("all is back, of an empty Redis", bothThere);
    await eventually("ready again", async () => (await readyz()) === 200);
    t.match(first.output(), /"event":"backend-back"/);
  });

  await t.test("flushed: the agents tell everything again", async (t) => {
    await redis.cli("FLUSHALL");
    await eventually("all is back", bothThere);
    t.match(await b.python('print(agent.acquire(model_name="m", timeout=20).names)'), /w/);
  });

  await t.test("34: the primary becomes a replica and the name moves: writes reach the new one", async (t) => {
    unlinkSync(name);
    symlinkSync(other.socket, name);
    await redis.cli("REPLICAOF", "127.0.0.1", "1");
    await eventually("all is at the new primary", bothThere);
    await eventually("ready", async () => (await readyz()) === 200);
    t.match(await other.cli("KEYS", "mx:node:*"), /mx:node:a/);
  });

  await t.test("any control plane may die at any moment", async () => {
    first.kill("SIGKILL");
    await first.exited;
    const left = async () => (await nodes()).length === 2;
    await eventually("the other one answers and hears of both", left);
    await other.cli("FLUSHALL");
    await eventually("and is told everything", left);
  });
});
