// An offer of 2 GiB, from the pod's filled memory to the complete holding, beside a plain copy of the same bytes into fresh tmpfs.
import { createCluster } from "../test/support/cluster.ts";
import { type BenchResult, check, machineName } from "./measure.ts";

const PROGRAM = `
import base64, json, os, subprocess, time
from weightline import memory, offer, transport
MIB, SIZE = 1 << 20, 1 << 30
names = ["a", "b"]

def filled(name):
    m = memory.Memory(name, SIZE)
    block = os.urandom(MIB)
    for at in range(0, SIZE, MIB): m.write(at, memoryview(block))
    return m

def plain(segments, folder):
    start = time.perf_counter()
    for i, m in enumerate(segments):
        subprocess.run(["dd", "if=/proc/%d/fd/%d" % (os.getpid(), m.descriptor), "of=%s/plain-%d" % (folder, i), "bs=1M", "status=none"], check=True)
    seconds = time.perf_counter() - start
    for i in range(len(segments)): os.unlink("%s/plain-%d" % (folder, i))
    return seconds

def run(folder, number):
    segments = [filled(name) for name in names]
    before = plain(segments, folder)
    identity = {"model_name": "offer-%d" % number, "extra_parameters": {"weightline.kind": "tensors"}}
    start = time.perf_counter()
    filling = agent.offer(identity=identity, tensors=[(name, "U8", (SIZE,)) for name in names])
    for segment, m in zip(filling._segments, segments):
        filling._give(segment.number, m)
        segment.missing.clear()
        m.close()
    held = filling.seal()
    seconds = time.perf_counter() - start
    held.release()
    return {"plain": before, "offer": seconds, "bytes": held.nbytes}

def death(number):
    "A pod that dies with the first of two segments given: until its memory is back."
    pid = os.fork()
    if pid == 0:
        filling = agent.offer(identity={"model_name": "dies-%d" % number, "extra_parameters": {"weightline.kind": "tensors"}}, tensors=[(name, "U8", (SIZE,)) for name in names])
        filling._give(0, filled("a"))
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    start = time.perf_counter()
    while agent.status().get("memory", {}).get("used", "0") not in (0, "0"): time.sleep(0.01)
    return time.perf_counter() - start

print(json.dumps(run(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "run" else {"death": death(int(sys.argv[3]))}))
`;

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    const agent = await cluster.startAgent("a", ["--memory-limit", "5GiB"]);
    const folder = cluster.store("plain");
    const { mkdirSync } = await import("node:fs");
    mkdirSync(folder, { recursive: true });
    const offers: number[] = [];
    const plains: number[] = [];
    const deaths: number[] = [];
    for (let i = 0; i < runs; i++) {
      const seen = JSON.parse(await agent.python(PROGRAM, ["run", folder, String(i)]));
      offers.push(seen.offer);
      plains.push(seen.plain);
      for (const holding of (await agent.client.status({})).holdings) {
        const sourceId = holding.identities[0]?.sourceId ?? "";
        await agent.client.evict({ wanted: { name: { case: "sourceId", value: sourceId } }, force: true });
      }
      deaths.push(JSON.parse(await agent.python(PROGRAM, ["death", folder, String(i)])).death);
    }
    return {
      bench: "offer",
      machine: machineName(),
      series: [
        { name: "offer of 2 GiB, filled to complete", values: offers, unit: "s" },
        { name: "dd of the same bytes into fresh tmpfs", values: plains, unit: "s" },
        { name: "a pod that dies with 1 GiB given: memory back", values: deaths, unit: "s" },
      ],
      checks: [
        check(
          "rate over that of one plain copy",
          offers.map((seconds, i) => (plains[i] ?? 0) / seconds),
          { atLeast: 0.8 },
        ),
        check("seconds until a dead pod's memory is back", deaths, { atMost: 1.15 }),
      ],
      notes: ["two segments of 1 GiB, given one after the other; digests XXH3-128"],
    };
  } finally {
    await cluster.stop();
  }
}
