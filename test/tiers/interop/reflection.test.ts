// Server reflection by grpcio-reflection, which builds its messages from nothing else.
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { runStock, VERSIONS } from "./stock-python.ts";

interface Reflected {
  services: string[];
  methods: Record<string, string[]>;
  health: number;
}

t.test("a Python client finds every service and its methods, and calls one", async (t) => {
  const cluster = await createCluster();
  t.teardown(() => cluster.stop());
  await cluster.startControlPlane();
  const agent = await cluster.startAgent("a");
  const [version] = VERSIONS;
  const controlPlane = await runStock<Reflected>(version, "reflection", [cluster.controlPlane()]);
  t.match(controlPlane, {
    health: 1,
    methods: {
      "model_express.p2p.P2pService": ["GetMetadata", "ListSources", "PublishMetadata", "UpdateStatus"],
      "weightline.node.v1.NodeService": Array,
    },
  });
  t.equal(controlPlane.services.length, 8);
  const node = await runStock<Reflected>(version, "reflection", [agent.address]);
  t.match(node, { health: 1, methods: { "weightline.peer.v1.PeerService": Array } });
  t.ok(node.methods["model_express.p2p.WorkerService"]?.includes("GetTensorManifest"));
});
