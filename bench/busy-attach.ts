// Acquire and attach on a node while it receives 2 GiB, on the same two cores.
import { createCluster } from "../test/support/cluster.ts";
import { pythonEnvironment, startCommand } from "../test/support/program.ts";
import { writeTensors } from "../test/support/safetensors-file.ts";
import { type BenchResult, check, machineName } from "./measure.ts";
import { writeLargeModel } from "./model.ts";

const PROGRAM = `
import json, os, sys, threading, time, weightline
agent = weightline.connect()
def once():
    start = time.perf_counter()
    held = agent.acquire(model_name="small")
    held["w"].data[0]
    seconds = time.perf_counter() - start
    held.release()
    return seconds * 1000
quiet = [once() for _ in range(200)]
print("quiet", json.dumps(quiet), flush=True)
sys.stdin.readline()
busy = []
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
while not over.is_set():
    busy.append(once())
    time.sleep(0.002)
print("busy", json.dumps(busy), flush=True)
`;

function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    await cluster.startControlPlane();
    const a = await cluster.startAgent("a", ["--memory-limit", "4GiB"]);
    const b = await cluster.startAgent("b", ["--memory-limit", "4GiB"]);
    const small = `${cluster.folder}/small.safetensors`;
    writeTensors(small, { w: { dtype: "U8", shape: [1_000_000] } });
    await cluster.mxctl(["load", small, "--model-name", "small"], b);
    const model = writeLargeModel(`${cluster.folder}/model`, 2 * 2 ** 30);
    await cluster.mxctl(["load", model, "--model-name", "large"], a);
    const quiet: number[] = [];
    const busy: number[] = [];
    const counts: number[] = [];
    for (let i = 0; i < runs; i++) {
      const pod = startCommand(["python3", "-u", "-c", PROGRAM], {
        env: pythonEnvironment({ MX_AGENT_SOCKET: b.socket }),
      });
      const [, before = "[]"] = await pod.waitFor(/quiet (\[.*\])/, 60_000);
      quiet.push(percentile(JSON.parse(before), 0.99));
      pod.say("go\n");
      for await (const _ of b.client.pull({ wanted: { name: { case: "model", value: { modelName: "large" } } } })) {
        // Progress.
      }
      pod.say("stop\n");
      const [, during = "[]"] = await pod.waitFor(/busy (\[.*\])/, 60_000);
      const values: number[] = JSON.parse(during);
      busy.push(percentile(values, 0.99));
      counts.push(values.length);
      await pod.exited;
      await b.client.evict({ wanted: { name: { case: "model", value: { modelName: "large" } } }, force: true });
    }
    return {
      bench: "busy-attach",
      machine: machineName(),
      series: [
        { name: "acquire and attach, p99 on a quiet node", values: quiet, unit: "ms" },
        { name: "the same while 2 GiB arrive", values: busy, unit: "ms" },
      ],
      checks: [check("p99 while 2 GiB arrive, ms", busy, { atMost: 20 })],
      notes: [`${counts.join(", ")} acquires during the transfers; sender, receiver and clients share the cores`],
    };
  } finally {
    await cluster.stop();
  }
}
