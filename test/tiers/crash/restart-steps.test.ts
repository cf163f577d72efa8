// kill -9 before every step of restart and refill that the agent takes or hands to its mover: of the agent, of the mover, of
// both, of the whole process group. The hook writes each step down before it is taken, and so proves the kill.
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { createCrashSweep } from "../../support/crash-sweep.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const { sweep, digestOf } = await createCrashSweep(cluster);

t.test("restart", (t) =>
  sweep(t, { name: "restart", finds: "complete", act: async () => undefined, begins: "mkdir holdings" }),
);
t.test("restart with a damaged holding, and its refill", (t) =>
  sweep(t, { name: "refill", finds: "damaged", act: digestOf, begins: "order check" }),
);
