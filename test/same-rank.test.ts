// Field case 36: two nodes hold different bytes under one identity and one rank, as when a tensor-parallel rank was given as the rank.
// Workers of stock clients in the same place are in the control plane's contract tests.

import { filesIdentity } from "@weightline/proto";
import { P2pService, SourceStatus, WorkerService } from "@weightline/proto/p2p";
import { createGrpcChannel, parseAddress } from "@weightline/runtime";
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());

t.test("both are listed, fetched by their worker ids, and both digests are told; nothing is overwritten", async (t) => {
  await cluster.startControlPlane();
  const open = (address: string) => {
    const channel = createGrpcChannel({ addresses: [parseAddress(address, "address")] });
    t.teardown(() => channel.close());
    return channel;
  };
  const p2p = open(cluster.controlPlane()).client(P2pService);
  const expected = [];
  for (const [name, tensor] of [
    ["a", "half.0"],
    ["b", "half.1"],
  ] as const) {
    const agent = await cluster.startAgent(name);
    const path = `${cluster.folder}/${name}.safetensors`;
    writeTensors(path, { [tensor]: { dtype: "U8", shape: [1000] } });
    const loaded = await cluster.mxctl(["load", path, "--model-name", "m", "--rank", "0"], agent);
    t.equal(loaded.code, 0, loaded.stderr);
    const [holding] = (await agent.client.status({})).holdings;
    const digest = Buffer.from(holding?.objectDigest ?? []).toString("hex");
    expected.push({ agent, tensor, digest, workerId: `${holding?.holdingId}-0` });
  }
  t.not(expected[0]?.digest, expected[1]?.digest);

  const request = { identity: filesIdentity("m"), statusFilter: SourceStatus.READY, workerRankFilter: 0 };
  let { instances } = await p2p.listSources(request);
  const end = performance.now() + 20_000;
  while (instances.length < 2 && performance.now() < end) {
    ({ instances } = await p2p.listSources(request));
  }
  t.same(
    instances.map(({ workerId }) => workerId).toSorted(),
    expected.map(({ workerId }) => workerId).toSorted(),
    "both are listed under one source id",
  );
  t.equal(new Set(instances.map(({ mxSourceId }) => mxSourceId)).size, 1);
  const mxSourceId = instances[0]?.mxSourceId ?? "";
  for (const { agent, tensor, workerId } of expected) {
    const { worker } = await p2p.getMetadata({ mxSourceId, workerId });
    t.match(worker, { workerGrpcEndpoint: agent.address, agentName: agent.name, workerRank: 0 });
    const manifest = await open(worker?.workerGrpcEndpoint ?? "")
      .client(WorkerService)
      .getTensorManifest({ mxSourceId, workerId });
    t.match(manifest.tensors, [{ name: tensor }], "each has its own bytes");
  }

  const { stdout } = await cluster.mxctl(["sources", "--output", "json"]);
  const [source, ...more] = JSON.parse(stdout) as Array<{ workers: Array<{ object_digest: string; node: string }> }>;
  t.same(more, []);
  t.same(
    source?.workers.map(({ node, object_digest }) => [node, object_digest]).toSorted(),
    expected.map(({ agent, digest }) => [agent.name, digest]),
  );
});
