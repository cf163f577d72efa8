// An idle agent with 16 holdings: CPU and memory of agent and mover.
import { setTimeout as sleep } from "node:timers/promises";
import { createCluster } from "../test/support/cluster.ts";
import { writeTensors } from "../test/support/safetensors-file.ts";
import { type BenchResult, check, cpuSeconds, machineName, pssBytes } from "./measure.ts";
import { moverPid } from "./transfer.ts";

const HOLDINGS = 16;
const WINDOW_S = 6;
const MEBIBYTE = 2 ** 20;

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    await cluster.startControlPlane();
    const agent = await cluster.startAgent("a", ["--announce-interval", "10s"]);
    for (let i = 0; i < HOLDINGS; i++) {
      const path = `${cluster.folder}/${i}.safetensors`;
      writeTensors(path, { w: { dtype: "U8", shape: [10_000_000] } });
      for await (const _ of agent.client.load({ path, modelName: `m${i}` })) {
        // Progress.
      }
    }
    await sleep(2000);
    const mover = await moverPid(agent);
    const cpu: number[] = [];
    for (let i = 0; i < runs; i++) {
      const before = cpuSeconds(agent.program.pid);
      await sleep(WINDOW_S * 1000);
      cpu.push(((cpuSeconds(agent.program.pid) - before) / WINDOW_S) * 100);
    }
    const memory = [pssBytes(agent.program.pid) / MEBIBYTE];
    const moverMemory = [pssBytes(mover) / MEBIBYTE];
    return {
      bench: "idle",
      machine: machineName(),
      series: [
        { name: "agent, CPU", values: cpu, unit: "% of a core" },
        { name: "agent, PSS", values: memory, unit: "MiB" },
        { name: "mover, PSS", values: moverMemory, unit: "MiB" },
      ],
      checks: [
        check("agent, % of a core", cpu, { atMost: 1 }),
        check("agent, MiB of PSS", memory, { atMost: 150 }),
        check("mover, MiB of PSS", moverMemory, { atMost: 80 }),
      ],
      notes: [`${HOLDINGS} holdings, announcing every 10 s`],
    };
  } finally {
    await cluster.stop();
  }
}
