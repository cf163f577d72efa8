// kill -9 before every step of load, pull and evict that the agent takes or hands to its mover: of the agent, of the mover, of
// both, of the whole process group. The hook writes each step down before it is taken, and so proves the kill.
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { createCrashSweep } from "../../support/crash-sweep.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const { sweep, load, pull, evict } = await createCrashSweep(cluster);

t.test("load", (t) => sweep(t, { name: "load", act: load, begins: "ready" }));
t.test("pull", (t) => sweep(t, { name: "pull", act: pull, begins: "ready" }));
t.test("evict", (t) => sweep(t, { name: "evict", finds: "complete", act: evict, begins: "ready", leaves: "nothing" }));
