// A node with 1,000 holdings: start to ready, and the cost of an announce when nothing changed.
import { setTimeout as sleep } from "node:timers/promises";
import { createCluster } from "../test/support/cluster.ts";
import { writeTensors } from "../test/support/safetensors-file.ts";
import { type BenchResult, check, exactCpuSeconds, machineName } from "./measure.ts";

const HOLDINGS = 1000;
const WINDOW_S = 5;
const FAST_MS = 100;
/** An agent lives for weeks: its announce is measured once what it does is compiled, which takes nearly a thousand of them. */
const WARM_MS = 90_000;

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    await cluster.startControlPlane();
    let agent = await cluster.startAgent("a");
    for (let i = 0; i < HOLDINGS; i++) {
      const path = `${cluster.folder}/m.safetensors`;
      const data = Buffer.alloc(1000);
      data.writeUInt32LE(i);
      writeTensors(path, { w: { dtype: "U8", shape: [1000], data } });
      for await (const _ of agent.client.load({ path, modelName: `m${i}` })) {
        // Progress.
      }
    }
    const flags = ["--store", agent.store, "--socket", agent.socket];
    const ready: number[] = [];
    const announce: number[] = [];
    const spent = async (interval: string) => {
      await agent.program.stop();
      agent = await cluster.startAgent("a", [...flags, "--announce-interval", interval]);
      await sleep(WARM_MS);
      const before = exactCpuSeconds(agent.program.pid);
      await sleep(WINDOW_S * 1000);
      return exactCpuSeconds(agent.program.pid) - before;
    };
    for (let i = 0; i < runs; i++) {
      await agent.program.stop();
      const start = performance.now();
      agent = await cluster.startAgent("a", flags);
      ready.push((performance.now() - start) / 1000);
      const fast = await spent(`${FAST_MS}ms`);
      const slow = await spent("60s");
      announce.push(((fast - slow) * 1000) / ((WINDOW_S * 1000) / FAST_MS));
    }
    const held = (await agent.client.status({})).holdings.length;
    return {
      bench: "many-holdings",
      machine: machineName(),
      series: [
        { name: `${HOLDINGS} holdings: exec to ready and announced`, values: ready, unit: "s" },
        { name: "one announce when nothing changed", values: announce, unit: "ms of CPU" },
      ],
      checks: [
        check("seconds from exec to ready", ready, { atMost: 2 }),
        check("ms of CPU for an announce", announce, { atMost: 1 }),
      ],
      notes: [`${held} holdings found; an announce's CPU is that of ${FAST_MS} ms intervals less that of 60 s ones`],
    };
  } finally {
    await cluster.stop();
  }
}
