// The same as transfer, over a link of 2 Gbit/s between two network namespaces.
import { statSync } from "node:fs";
import { createCluster } from "../test/support/cluster.ts";
import { linkNamespaces } from "../test/support/network.ts";
import { ROOT, runCommand, startCommand } from "../test/support/program.ts";
import { type BenchResult, check, machineName } from "./measure.ts";
import { writeLargeModel } from "./model.ts";
import { acquireOnce } from "./transfer.ts";

const BYTES = 1 * 2 ** 30;
const RATE = "2gbit";
const BARE = `${ROOT}packages/rdma-native/build/Release/bare_streams`;
const PORT = 9100;

export async function run(runs: number): Promise<BenchResult> {
  const network = await linkNamespaces({ addresses: [["10.99.0.1/24"], ["10.99.0.2/24"]], rate: RATE });
  const cluster = await createCluster();
  try {
    const inside = (index: 0 | 1) => ({ wrapper: network.wrapper(index) });
    await cluster.startControlPlane(["--host", "10.99.0.1", "--port", "8001", "--metrics-port", "9401"], inside(0));
    const controlPlane = ["--control-plane", "10.99.0.1:8001", "--memory-limit", "4GiB", "--link-rate", "2Gbit"];
    const parent = await cluster.startAgent(
      "parent",
      [...controlPlane, "--bind", "10.99.0.1", "--host", "10.99.0.1"],
      inside(0),
    );
    const child = await cluster.startAgent(
      "child",
      [...controlPlane, "--bind", "10.99.0.2", "--host", "10.99.0.2"],
      inside(1),
    );
    const model = writeLargeModel(`${cluster.folder}/model`, BYTES);
    const bytes = statSync(model).size;
    for await (const _ of parent.client.load({ path: model, modelName: "m" })) {
      // Progress.
    }
    const [holding] = (await parent.client.status({})).holdings;
    const source = `${parent.store}/holdings/${holding?.holdingId}/files/model.safetensors`;
    const scratch = cluster.store("scratch");
    const server = startCommand([...network.wrapper(0), BARE, "serve", source, String(PORT)]);
    await server.waitFor(/ready/);
    const ours: number[] = [];
    const bare: number[] = [];
    // The first round warms page tables and caches, and counts for nobody.
    for (let i = -1; i < runs; i++) {
      const done = await runCommand(
        [...network.wrapper(1), BARE, "fetch", "10.99.0.1", String(PORT), String(bytes), "2", scratch],
        { timeoutMs: 120_000 },
      );
      bare.push((JSON.parse(done.stdout) as { seconds: number }).seconds);
      await runCommand(["rm", scratch]);
      ours.push((await acquireOnce(parent, child, bytes)).seconds);
    }
    ours.shift();
    bare.shift();
    const { transfers } = await child.client.transfers({});
    await server.stop();
    return {
      bench: "limited-link",
      machine: machineName(),
      series: [
        { name: `agent to agent over ${RATE}, from the acquire to complete`, values: ours, unit: "s" },
        { name: "bare two-stream program, nothing checked", values: bare, unit: "s" },
      ],
      checks: [
        check(
          "rate over the bare program's, from the acquire",
          ours.map((seconds, i) => (bare[i] ?? 0) / seconds),
          { atLeast: 0.98 },
        ),
      ],
      notes: [
        `${bytes} bytes; percent of the link, as the agent reports it: ${transfers.map(({ percentOfBound }) => percentOfBound.toFixed(1)).join(", ")}`,
      ],
    };
  } finally {
    await cluster.stop();
    await network.remove();
  }
}
