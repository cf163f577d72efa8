// A well-behaved client beside one that means harm: its p99 as a ratio to the quiet one of the same round.
import { createCluster } from "../test/support/cluster.ts";
import { pythonEnvironment, ROOT, type RunningProgram, runCommand, startCommand } from "../test/support/program.ts";
import { writeTensors } from "../test/support/safetensors-file.ts";
import { type BenchResult, check, machineName, pssBytes, type Series } from "./measure.ts";

const KINDS = ["busy", "silent", "reconnect", "unread", "leases", "calls", "descriptors"] as const;
/** Two calls each: the p99 is the fourth worst. */
const CALLS = 400;
const RATIO_MAX = 2;
const GROWTH_MAX_BYTES = 64 * 2 ** 20;

/**
 * A status, and an acquire with its descriptors and its release, some forty times a second: far more than a pod needs, and
 * less than its ration of the agent.
 */
const WELL_BEHAVED = `
import json, sys, time, weightline
agent = weightline.connect()
count = int(sys.argv[1])
taken = {"status": [], "acquire": []}
for i in range(count):
    start = time.perf_counter()
    agent.status()
    middle = time.perf_counter()
    agent.acquire(model_name="m").release()
    taken["status"].append((middle - start) * 1000)
    taken["acquire"].append((time.perf_counter() - middle) * 1000)
    time.sleep(0.02)
print(json.dumps({name: sorted(all)[int(count * 0.99)] for name, all in taken.items()}))
`;

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  const running: RunningProgram[] = [];
  try {
    const agent = await cluster.startAgent("a");
    const path = `${cluster.folder}/m.safetensors`;
    writeTensors(path, { w: { dtype: "U8", shape: [1_000_000] } });
    await cluster.load(agent, path, "m");
    const measure = async () => {
      const done = await runCommand(["python3", "-c", WELL_BEHAVED, String(CALLS)], {
        env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }),
        timeoutMs: 120_000,
      });
      if (done.code !== 0) {
        throw new Error(`the well-behaved client failed: ${done.stderr}`);
      }
      return JSON.parse(done.stdout) as { status: number; acquire: number };
    };
    await measure();
    const memoryBefore = pssBytes(agent.program.pid);
    const quiet: Series[] = ["status", "acquire"].map((call) => ({
      name: `quiet: p99 of ${call}`,
      values: [],
      unit: "ms",
    }));
    const ratios = new Map<string, number[]>();
    const series = new Map<string, number[]>();
    for (let round = 0; round < runs; round++) {
      for (const kind of KINDS) {
        const before = await measure();
        // On one core, as a pod's limit would hold it.
        const hostile = startCommand(
          ["taskset", "--cpu-list", "1", "python3", "-u", `${ROOT}test/support/hostile_client.py`, kind, agent.socket],
          { env: { PYTHONPATH: `${ROOT}test/support` } },
        );
        running.push(hostile);
        await hostile.waitFor(/begun/);
        const beside = await measure();
        hostile.kill("SIGKILL");
        await hostile.exited;
        for (const call of ["status", "acquire"] as const) {
          quiet[call === "status" ? 0 : 1]?.values.push(before[call]);
          const name = `${kind}: ${call}`;
          series.set(name, [...(series.get(name) ?? []), beside[call]]);
          ratios.set(name, [...(ratios.get(name) ?? []), beside[call] / before[call]]);
        }
      }
    }
    const grown = pssBytes(agent.program.pid) - memoryBefore;
    return {
      bench: "hostile",
      machine: machineName(),
      series: [...quiet, ...[...series].map(([name, values]) => ({ name: `beside ${name}, p99`, values, unit: "ms" }))],
      checks: [
        ...[...ratios]
          .filter(([name]) => !name.startsWith("busy"))
          .map(([name, values]) => check(`p99 beside over quiet, ${name}`, values, { atMost: RATIO_MAX })),
        check("agent's memory grown, bytes", [grown], { atMost: GROWTH_MAX_BYTES }),
      ],
      notes: [
        "the hostile client is bound to one core; the agent and the other client are not",
        "beside busy: what a core that is kept and calls nobody does to the others on this machine",
      ],
    };
  } finally {
    await Promise.all(running.map((program) => program.stop()));
    await cluster.stop();
  }
}
