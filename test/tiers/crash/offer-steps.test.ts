// kill -9 before every step of an offer that the agent takes or hands to its mover: of the agent, of the mover, of
// both, of the whole process group. The hook writes each step down before it is taken, and so proves the kill.
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { createCrashSweep } from "../../support/crash-sweep.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const { sweep, offer } = await createCrashSweep(cluster);

t.test("offer", (t) => sweep(t, { name: "offer", act: offer, begins: "ready", leaves: "offered" }));
