// A 2 GiB safetensors model from the page cache into the store, beside dd of the same file into the same tmpfs.
import { statSync } from "node:fs";
import { createCluster } from "../test/support/cluster.ts";
import { runCommand } from "../test/support/program.ts";
import { type BenchResult, check, machineName } from "./measure.ts";
import { writeLargeModel } from "./model.ts";

const BYTES = 2 * 2 ** 30;

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    const model = writeLargeModel(`${cluster.folder}/model`, BYTES);
    const bytes = statSync(model).size;
    const agents = await Promise.all(
      [1, 2].map((threads) =>
        cluster.startAgent(`threads-${threads}`, ["--load-threads", String(threads), "--memory-limit", "4GiB"]),
      ),
    );
    const scratch = cluster.store("scratch");
    const dd: number[] = [];
    const ours: number[][] = agents.map(() => []);
    // The first round brings the file into the page cache, and counts for nobody.
    for (let i = -1; i < runs; i++) {
      const start = performance.now();
      await runCommand(["dd", `if=${model}`, `of=${scratch}`, "bs=1M"]);
      dd.push((performance.now() - start) / 1000);
      await runCommand(["rm", scratch]);
      for (const [at, agent] of agents.entries()) {
        const begun = performance.now();
        for await (const _ of agent.client.load({ path: model, modelName: "m" })) {
          // Progress.
        }
        ours[at]?.push((performance.now() - begun) / 1000);
        await agent.client.evict({ wanted: { name: { case: "model", value: { modelName: "m" } } } });
      }
    }
    for (const series of [dd, ...ours]) {
      series.shift();
    }
    const ratio = (values: readonly number[]) => values.map((seconds, i) => (dd[i] ?? 0) / seconds);
    return {
      bench: "load",
      machine: machineName(),
      series: [
        { name: "load, one thread", values: ours[0] ?? [], unit: "s" },
        { name: "load, two threads", values: ours[1] ?? [], unit: "s" },
        { name: "dd bs=1M into the same tmpfs", values: dd, unit: "s" },
      ],
      checks: [
        check("rate over dd's, two threads (the default)", ratio(ours[1] ?? []), { atLeast: 1 }),
        check("rate over dd's, one thread", ratio(ours[0] ?? []), { atLeast: 1 }),
      ],
      notes: [`${bytes} bytes, digested while they are copied`],
    };
  } finally {
    await cluster.stop();
  }
}
