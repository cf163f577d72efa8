// 64 processes acquire one held object at once.
import { createCluster } from "../test/support/cluster.ts";
import { writeTensors } from "../test/support/safetensors-file.ts";
import { type BenchResult, check, machineName } from "./measure.ts";

const CLIENTS = 64;

const PROGRAM = `
import json, os, time
count = int(sys.argv[1])
gate, go = os.pipe()
results, told = os.pipe()
pids = []
for i in range(count):
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(gate, 1)
        held = agent.acquire(model_name="m")
        byte = held["w"].data[0]
        os.write(told, ("%.9f %d\\n" % (time.monotonic(), held.copied_bytes)).encode())
        time.sleep(2)
        os._exit(0)
    pids.append(pid)
time.sleep(0.5)
start = time.monotonic()
os.close(go)
text = b""
while text.count(b"\\n") < count: text += os.read(results, 65536)
rows = [line.split() for line in text.decode().splitlines()]
leases = agent.status().get("leases", 0)
for pid in pids: os.kill(pid, 9); os.waitpid(pid, 0)
print(json.dumps({"last": max(float(at) for at, _ in rows) - start, "copied": sum(int(n) for _, n in rows), "leases": leases}))
`;

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    const agent = await cluster.startAgent("a");
    const path = `${cluster.folder}/m.safetensors`;
    writeTensors(path, { w: { dtype: "U8", shape: [100_000_000] } });
    await cluster.mxctl(["load", path, "--model-name", "m"], agent);
    const seconds: number[] = [];
    const copied: number[] = [];
    const leases: number[] = [];
    for (let i = 0; i < runs; i++) {
      const seen = JSON.parse(await agent.python(PROGRAM, [String(CLIENTS)]));
      seconds.push(seen.last);
      copied.push(seen.copied);
      leases.push(seen.leases);
    }
    return {
      bench: "crowd",
      machine: machineName(),
      series: [{ name: `${CLIENTS} clients at once, until the last is attached`, values: seconds, unit: "s" }],
      checks: [
        check("seconds until all are attached", seconds, { atMost: 1 }),
        check("leases then", leases, { atLeast: CLIENTS }),
        check("bytes copied", copied, { atMost: 0 }),
      ],
      notes: ["forked processes that wait for one pipe; each acquires, maps and reads a byte"],
    };
  } finally {
    await cluster.stop();
  }
}
