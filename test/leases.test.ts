import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { pythonEnvironment, runCommand, startCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const agent = await cluster.startAgent("a");
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [5_000_000], data: Buffer.alloc(5_000_000, 7) } });
const reload = () => cluster.mxctl(["load", path, "--model-name", "m"], agent);
await reload();

const leases = async () => (await agent.client.status({})).leases;

async function until(what: () => Promise<boolean>): Promise<boolean> {
  for (let i = 0; i < 100; i++) {
    if (await what()) {
      return true;
    }
    await sleep(50);
  }
  return false;
}

/** A Python process that holds a lease until it is told to end. */
function holder(code: string) {
  return startCommand(
    ["python3", "-u", "-c", `import os, sys, time, weightline\nagent = weightline.connect()\n${code}`],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
  );
}

/** Python that waits until the test says so. */
const untilTold = (word: string) => `while not os.path.exists("${cluster.folder}/${word}"): time.sleep(0.02)`;
const tell = (word: string) => writeFileSync(`${cluster.folder}/${word}`, "");

t.test("a lease ends with its block, with release, with its process", async (t) => {
  t.equal(
    await agent.python(
      'held = agent.acquire(model_name="m")\nn = agent.status()["leases"]\nheld.release()\nheld.release()\nprint(n, agent.status().get("leases", 0))',
    ),
    "1 0",
  );
  const process = holder('held = agent.acquire(model_name="m")\nprint("held")\ntime.sleep(60)');
  await process.waitFor(/held/);
  t.equal(await leases(), 1);
  process.kill("SIGKILL");
  t.ok(await until(async () => (await leases()) === 0), "gone with the process");
});

t.test("SIGKILL: all leases of the process end within a second, those of others stay", async (t) => {
  const other = holder('held = agent.acquire(model_name="m")\nprint("held")\ntime.sleep(60)');
  await other.waitFor(/held/);
  const process = holder('all = [agent.acquire(model_name="m") for i in range(20)]\nprint("held")\ntime.sleep(60)');
  await process.waitFor(/held/);
  t.equal(await leases(), 21);
  process.kill("SIGKILL");
  await process.exited;
  const dead = performance.now();
  t.ok(await until(async () => (await leases()) === 1));
  t.ok(performance.now() - dead < 1000);
  await other.stop();
  t.ok(await until(async () => (await leases()) === 0));
});

t.test("what is leased is not evicted: exit 6; with --force the memory returns when the user leaves", async (t) => {
  const process = holder(
    `held = agent.acquire(model_name="m")\nt = held["w"].data\nprint("held")\n${untilTold("evicted")}\nprint("sum", t[0] + t[-1])`,
  );
  await process.waitFor(/held/);
  const refused = await cluster.mxctl(["evict", "--model-name", "m"], agent);
  t.equal(refused.code, 6);
  t.match(refused.stderr, new RegExp(`1 lease.*process ${process.pid}.*--force`));
  const forced = await cluster.mxctl(["evict", "--model-name", "m", "--force", "--output", "json"], agent);
  t.equal(forced.code, 0);
  t.match(JSON.parse(forced.stdout), { freed_bytes: 0 });
  t.ok(JSON.parse(forced.stdout).pending_bytes >= 5_000_000);
  t.equal((await cluster.mxctl(["pull", "--model-name", "m"], agent)).code, 3, "it is attached no more");
  tell("evicted");
  await process.waitFor(/sum 14/);
  t.ok(await until(async () => (await agent.client.status({})).holdings.length === 0), "freed after the last user");
  await reload();
});

t.test("a fork's child holds no lease: release there does nothing, the parent reads on", async (t) => {
  const output = await agent.python(`
import os
held = agent.acquire(model_name="m")
t = held["w"].data
pid = os.fork()
if pid == 0:
    held.release()
    os._exit(0)
os.waitpid(pid, 0)
print(agent.status().get("leases"), t[0], t[4_999_999], held["w"].shape)
`);
  t.equal(output, "1 7 7 (5000000,)");
});

t.test("a view after release and eviction shows the old bytes or raises; never others", async (t) => {
  const other = `${cluster.folder}/other.safetensors`;
  writeTensors(other, { w: { dtype: "U8", shape: [5_000_000], data: Buffer.alloc(5_000_000, 9) } });
  const process = holder(
    `held = agent.acquire(model_name="m")\nt = held["w"].data\nheld.release()\ntry:\n    held["w"]\nexcept weightline.Refused as e:\n    print("raises", e.code)\nprint("released")\n${untilTold("other")}\nprint("bytes", t[0], t[2_500_000], t[4_999_999])`,
  );
  await process.waitFor(/raises Refused\nreleased/);
  const evicted = await cluster.mxctl(["evict", "--model-name", "m", "--output", "json", "--timeout", "2"], agent);
  t.ok([0, 1].includes(evicted.code ?? -1));
  t.equal((await cluster.mxctl(["load", other, "--model-name", "other"], agent)).code, 0);
  tell("other");
  await process.waitFor(/bytes 7 7 7/);
  await until(async () => (await agent.client.status({})).holdings.length === 1);
  await reload();
});

t.test("another process can neither release a lease nor use its ticket", async (t) => {
  const process = holder('held = agent.acquire(model_name="m")\nprint("lease", held.lease_id)\ntime.sleep(30)');
  const [, id] = await process.waitFor(/lease (\S+)/);
  await t.rejects(agent.client.release({ leaseId: id ?? "" }), /belongs to another process/);
  await t.rejects(agent.client.attach({ leaseId: id ?? "" }), /has no lease/);
  t.equal(await leases(), 1);
  await process.stop();
});

t.test("1,000 leases taken and given back leave nothing: descriptors, maps", async (t) => {
  const output = await agent.python(`
import os
def count(): return len(os.listdir("/proc/self/fd")), open("/proc/self/maps").read().count("/holdings/")
with agent.acquire(model_name="m"): pass
before = count()
for i in range(1000):
    with agent.acquire(model_name="m") as held: held["w"].data
del held
print(before == count(), count())
`);
  t.match(output, /^True/);
  const descriptors = async () =>
    Number((await runCommand(["sh", "-c", `ls /proc/${agent.program.pid}/fd | wc -l`])).stdout);
  const before = await descriptors();
  await agent.python('for i in range(300):\n    agent.acquire(model_name="m").release()');
  t.ok(await until(async () => (await descriptors()) <= before + 2), "nor in the agent");
  t.equal(await leases(), 0);
});

t.test("numpy and torch: BF16 by ml_dtypes, else an error that names the ways out", async (t) => {
  const mixed = `${cluster.folder}/mixed.safetensors`;
  writeTensors(mixed, {
    bf: { dtype: "BF16", shape: [2], data: Buffer.from([0x80, 0x3f, 0x00, 0x40]) },
    f: { dtype: "F32", shape: [], data: Buffer.from(new Float32Array([1.5]).buffer) },
    new: { dtype: "F5_NEW", shape: [4], data: Buffer.from([1, 2, 3]) },
  });
  const loaded = await cluster.mxctl(["load", mixed, "--model-name", "mixed", "--output", "json"], agent);
  t.match(JSON.parse(loaded.stdout).warnings, [/F5_NEW is not known/], "an unknown dtype is carried, warned once");
  t.equal(
    await agent.python(
      'with agent.acquire(model_name="mixed") as held: print(held["bf"].numpy().astype("float32").tolist(), held["f"].numpy().tolist(), held["f"].shape, bytes(held["new"].data))',
    ),
    "[1.0, 2.0] 1.5 () b'\\x01\\x02\\x03'",
  );
  const without = await agent.python(`
sys.modules["ml_dtypes"] = None
with agent.acquire(model_name="mixed") as held:
    for name in ("bf", "new"):
        try: held[name].numpy()
        except weightline.Refused as e: print(e.field, e.value, e.way_out)
`);
  t.equal(
    without,
    "bf BF16 install ml_dtypes, or use .torch(), or .data, the raw bytes\nnew F5_NEW use .data, the raw bytes, or .torch()",
  );
});
