// Server reflection by a tool that somebody else wrote: buf curl, which has none of our .proto files.
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { ROOT, runCommand } from "./support/program.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const agent = await cluster.startAgent("a");

/** In a folder without any schema. */
async function curl(address: string, path: string, ...flags: string[]): Promise<string> {
  const done = await runCommand(
    [
      `${ROOT}node_modules/.bin/buf`,
      "curl",
      "--protocol",
      "grpc",
      "--http2-prior-knowledge",
      ...flags,
      `http://${address}${path}`,
    ],
    {
      cwd: cluster.folder,
      env: { HOME: cluster.folder, PATH: `${ROOT}.tools/node_modules/.bin:${process.env["PATH"]}` },
    },
  );
  if (done.code !== 0) {
    throw new Error(`buf curl ${path}: exit ${done.code}\n${done.stderr}`);
  }
  return done.stdout;
}

const PROTOCOLS = ["grpc-v1", "grpc-v1alpha"];

t.test("control plane: services are listed and called by their names alone", async (t) => {
  for (const protocol of PROTOCOLS) {
    const flags = ["--reflect-protocol", protocol];
    t.match(
      (await curl(cluster.controlPlane(), "", "--list-services", ...flags)).split("\n"),
      [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "model_express.api.ApiService",
        "model_express.health.HealthService",
        "model_express.model.ModelService",
        "model_express.p2p.P2pService",
        "weightline.node.v1.NodeService",
      ],
      protocol,
    );
    const published = await curl(
      cluster.controlPlane(),
      "/model_express.p2p.P2pService/PublishMetadata",
      ...flags,
      "-d",
      '{"identity":{"model_name":"m"},"worker_id":"w","worker":{"worker_rank":3}}',
    );
    t.match(JSON.parse(published), { success: true, mxSourceId: "cfe71ebe7cba7d9a", workerId: "w" });
    const nodes = await curl(cluster.controlPlane(), "/weightline.node.v1.NodeService/ListNodes", ...flags, "-d", "{}");
    t.match(JSON.parse(nodes), { nodes: [{ name: "a", state: "NODE_STATE_READY", address: agent.address }] });
  }
});

t.test("agent: the same on its port", async (t) => {
  for (const protocol of PROTOCOLS) {
    const flags = ["--reflect-protocol", protocol];
    const listed = await curl(agent.address, "", "--list-services", ...flags);
    t.match(listed, /^model_express\.p2p\.WorkerService$/m);
    t.match(listed, /^weightline\.peer\.v1\.PeerService$/m);
    const health = await curl(agent.address, "/grpc.health.v1.Health/Check", ...flags, "-d", "{}");
    t.same(JSON.parse(health), { status: "SERVING" });
  }
});
