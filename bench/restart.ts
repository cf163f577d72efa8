// kill -9 of an agent that holds 2 GiB: from the new process's exec to the first attach.
import { createCluster } from "../test/support/cluster.ts";
import { type BenchResult, check, machineName } from "./measure.ts";
import { writeLargeModel } from "./model.ts";

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    await cluster.startControlPlane();
    let agent = await cluster.startAgent("a", ["--memory-limit", "4GiB"]);
    const model = writeLargeModel(`${cluster.folder}/model`, 2 * 2 ** 30);
    for await (const _ of agent.client.load({ path: model, modelName: "m" })) {
      // Progress.
    }
    const seconds: number[] = [];
    const read: number[] = [];
    const network: number[] = [];
    for (let i = 0; i < runs; i++) {
      agent.program.kill("SIGKILL");
      await agent.program.exited;
      const start = performance.now();
      const starting = cluster.startAgent("a", [
        "--memory-limit",
        "4GiB",
        "--store",
        agent.store,
        "--socket",
        agent.socket,
      ]);
      const old = agent;
      let attached = 0;
      while (attached === 0) {
        try {
          for await (const { event } of old.client.acquire({
            wanted: { name: { case: "model", value: { modelName: "m" } } },
          })) {
            attached = event.case === "held" ? performance.now() : 0;
          }
        } catch {
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      }
      seconds.push((attached - start) / 1000);
      agent = await starting;
      read.push(Number(/"checkedBytes":(\d+)/.exec(agent.program.output())?.[1] ?? Number.NaN));
      network.push(await agent.metric("weightline_transfer_bytes_total", 'direction="in"'));
    }
    return {
      bench: "restart",
      machine: machineName(),
      series: [{ name: "kill -9, exec to the first attach", values: seconds, unit: "s" }],
      checks: [
        check("seconds from exec to serving", seconds, { atMost: 2 }),
        check("bytes read again", read, { atMost: 0 }),
        check("bytes over the network", network, { atMost: 0 }),
      ],
      notes: ["files with the immutable flag are trusted; without it each is digested once (not measured here)"],
    };
  } finally {
    await cluster.stop();
  }
}
