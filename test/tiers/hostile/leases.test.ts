// Many leases, taken and given back, and taken while room is made: nothing is left, nothing is wrong.
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { heapBytes, INSPECTABLE } from "../../support/heap.ts";
import { pythonEnvironment, runCommand, startCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());

/** What a process has. */
interface Use {
  descriptors: number;
  /** Mappings of holdings. */
  maps: number;
  threads: number;
  residentBytes: number;
}

function useOf(pid: number): Use {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return {
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    maps: readFileSync(`/proc/${pid}/maps`, "utf8").split("/holdings/").length - 1,
    threads: Number(/Threads:\s+(\d+)/.exec(status)?.[1]),
    residentBytes: Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) * 1024,
  };
}

t.test("10,000 leases taken, attached and given back leave nothing: in the client, the agent, the mover", async (t) => {
  const agent = await cluster.startAgent("cycles", [], INSPECTABLE);
  const path = `${cluster.folder}/m.safetensors`;
  writeTensors(path, { w: { dtype: "U8", shape: [5_000_000] } });
  await cluster.load(agent, path, "m");
  const client = startCommand(
    [
      "python3",
      "-u",
      "-c",
      `
import sys, threading, weightline
agent = weightline.connect()
def cycles(n):
    for i in range(n):
        with agent.acquire(model_name="m") as held: assert len(held["w"].data) == 5_000_000
def use():
    status = open("/proc/self/status").read()
    return [len(__import__("os").listdir("/proc/self/fd")), open("/proc/self/maps").read().count("/holdings/"), threading.active_count(), int(status.split("VmRSS:")[1].split()[0])]
cycles(1000)
print("warm", use())
__import__("time").sleep(3)
cycles(10_000)
print("done", use())
__import__("time").sleep(60)
`,
    ],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
  );
  const [, warm = ""] = await client.waitFor(/warm (\[.*\])/, 120_000);
  const mover = Number((await runCommand(["pgrep", "-P", String(agent.program.pid), "-f", "mover-main"])).stdout);
  const heap = await heapBytes(agent.program);
  const before = { agent: useOf(agent.program.pid), mover: useOf(mover) };
  const [, done = ""] = await client.waitFor(/done (\[.*\])/, 300_000);
  const [first, last] = [JSON.parse(warm) as number[], JSON.parse(done) as number[]];
  t.same(last.slice(0, 3), first.slice(0, 3), "the client: descriptors, maps, threads");
  t.equal(last[1], 0);
  t.ok((last[3] ?? 0) - (first[3] ?? 0) < 4096, `the client's memory: ${first[3]} to ${last[3]} KiB`);
  t.equal((await agent.client.status({})).leases, 0);
  // Its last connections close in their own time.
  for (let i = 0; i < 100 && useOf(agent.program.pid).descriptors > before.agent.descriptors; i++) {
    await sleep(50);
  }
  for (const [name, pid, was] of [
    ["agent", agent.program.pid, before.agent],
    ["mover", mover, before.mover],
  ] as const) {
    const is = useOf(pid);
    t.ok(is.descriptors <= was.descriptors, `${name}: ${was.descriptors} to ${is.descriptors} descriptors`);
    t.equal(is.maps, 0, `${name}: maps nothing of a holding`);
    t.ok(is.threads <= was.threads, `${name}: ${was.threads} to ${is.threads} threads`);
    // The agent's heap is measured below: V8 keeps some of what it once had.
    const grown = (is.residentBytes - was.residentBytes) / 2 ** 20;
    t.ok(grown < (name === "mover" ? 4 : 400), `${name}: ${grown.toFixed(1)} MiB more`);
  }
  const grown = ((await heapBytes(agent.program)) - heap) / 2 ** 20;
  t.ok(grown < 4, `the agent's heap: ${grown.toFixed(1)} MiB more`);
  await client.stop();
  await agent.program.stop();
});

t.test("one process has as many leases as its cap; all end with it at once", async (t) => {
  const agent = await cluster.startAgent("many");
  await cluster.load(agent, `${cluster.folder}/m.safetensors`, "m");
  const client = startCommand(
    [
      "python3",
      "-u",
      "-c",
      `
import time, weightline
agent, all = weightline.connect(), []
try:
    while True: all.append(agent.acquire(model_name="m"))
except weightline.Error as e: print("refused", len(all), e.code, e.field, e.limit)
time.sleep(60)
`,
    ],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
  );
  await client.waitFor(/refused 4096 ResourceExhausted leases 4096/, 120_000);
  t.equal((await agent.client.status({})).leases, 4096);
  t.ok(useOf(agent.program.pid).descriptors < 100, "they cost no descriptors");
  const killed = performance.now();
  client.kill("SIGKILL");
  while ((await agent.client.status({})).leases > 0 && performance.now() - killed < 10_000) {
    await sleep(5);
  }
  const tookMs = performance.now() - killed;
  t.ok(tookMs < 1000, `${tookMs.toFixed(0)} ms`);
  await agent.program.stop();
});

const MODEL_BYTES = 4_000_000;
const LIMIT = ["--memory-limit", String(3 * MODEL_BYTES + 1_000_000)];

function model(name: string): string {
  const path = `${cluster.folder}/${name}.safetensors`;
  writeTensors(path, { w: { dtype: "U8", shape: [MODEL_BYTES] } });
  return path;
}

t.test("acquires while room is made: a lease is on a holding that is there, always", async (t) => {
  const agent = await cluster.startAgent("race", LIMIT);
  const names = ["a", "b", "c", "d"];
  const paths = new Map(names.map((name) => [name, model(`race-${name}`)]));
  let loading = true;
  const loads = (async () => {
    let done = 0;
    for (let i = 0; i < 12; i++) {
      const name = names[i % names.length] ?? "";
      done += Number((await cluster.mxctl(["load", paths.get(name) ?? "", "--model-name", name], agent)).code === 0);
    }
    loading = false;
    return done;
  })();
  const seen = new Set<string>();
  while (loading) {
    const output = await agent.python(`
said = []
for i in range(60):
    name = "abcd"[i % 4]
    try:
        with agent.acquire(model_name=name, timeout=5) as held: said.append("read" if len(bytes(held["w"].data)) == ${MODEL_BYTES} else "short")
    except weightline.Error as e: said.append(e.code)
print(" ".join(set(said)))
`);
    for (const word of output.split(" ")) {
      seen.add(word);
    }
  }
  t.ok((await loads) >= 8, "most loads found room");
  t.ok(seen.has("read"), [...seen].join());
  for (const word of seen) {
    t.ok(["read", "NotFound", "Unavailable"].includes(word), word);
  }
  await agent.program.stop();
});
