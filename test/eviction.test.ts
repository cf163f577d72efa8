// Whose memory goes when room is needed: never what is used, and nothing in vain.
import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldingState } from "@weightline/proto/common";
import { describeError, fromRpcError } from "@weightline/runtime";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { pythonEnvironment, startCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();

const MODEL_BYTES = 4_000_000;
/** Room for three models and what belongs to them, not for four. */
const LIMIT = ["--memory-limit", String(3 * MODEL_BYTES + 1_000_000)];

function model(name: string, bytes = MODEL_BYTES): string {
  const path = `${cluster.folder}/${name}.safetensors`;
  writeTensors(path, { w: { dtype: "U8", shape: [bytes] } });
  return path;
}

/** Loads it; gives "" or why it could not be. */
async function load(agent: Agent, name: string, bytes?: number): Promise<string> {
  try {
    for await (const _ of agent.client.load({ path: model(name, bytes), modelName: name })) {
      // Progress.
    }
    return "";
  } catch (error) {
    return describeError(fromRpcError(error));
  }
}

async function pull(agent: Agent, name: string): Promise<void> {
  for await (const _ of agent.client.pull({ wanted: { name: { case: "model", value: { modelName: name } } } })) {
    // Progress.
  }
}

async function names(agent: Agent): Promise<string[]> {
  const { holdings } = await agent.client.status({});
  return holdings.map(({ identities }) => identities[0]?.identity?.modelName ?? "").toSorted();
}

/** A Python process that runs until it is stopped. */
function holder(agent: Agent, code: string) {
  return startCommand(
    ["python3", "-u", "-c", `import os, sys, time, weightline\nagent = weightline.connect()\n${code}`],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
  );
}

async function until(what: () => Promise<boolean>): Promise<boolean> {
  for (let i = 0; i < 200 && !(await what()); i++) {
    await sleep(50);
  }
  return what();
}

t.test("least recently used first; what is leased stays; who does not fit is told before the first byte", async (t) => {
  const agent = await cluster.startAgent("lru", LIMIT);
  for (const name of ["one", "two", "three"]) {
    t.equal(await load(agent, name), "");
  }
  await agent.python('agent.acquire(model_name="one").release()');
  t.equal(await load(agent, "four"), "");
  t.same(await names(agent), ["four", "one", "three"], "the one that was used last stays, the oldest went");
  const users = holder(
    agent,
    'held = [agent.acquire(model_name=name) for name in ("one", "three")]\nprint("held")\ntime.sleep(100)',
  );
  await users.waitFor(/held/);
  t.equal(await load(agent, "five"), "");
  t.same(await names(agent), ["five", "one", "three"], "the only one without a lease");
  // Two models' room is leased: this one would not fit even if the third went.
  const before = readdirSync(`${agent.store}/holdings`).toSorted();
  const refused = await load(agent, "large", 2 * MODEL_BYTES);
  t.match(refused, /needed for the holding, .* are free .*--memory-limit.*way out/s);
  t.same(await names(agent), ["five", "one", "three"], "nothing was taken from anybody in vain");
  t.same(readdirSync(`${agent.store}/holdings`).toSorted(), before, "and nothing of it is left");
  await users.stop();
  await until(async () => (await agent.client.status({})).leases === 0);
  t.equal(await load(agent, "large", 2 * MODEL_BYTES), "", "with the leases gone there is room");
  t.equal((await names(agent)).length, 2);
  await agent.program.stop();
});

t.test("full store under load: all that is leased stays and is read; each who comes is told", async (t) => {
  const origin = await cluster.startAgent("origin");
  for (const name of ["p", "q", "r", "s", "u"]) {
    t.equal(await load(origin, name), "");
  }
  const agent = await cluster.startAgent("full", LIMIT);
  const users = holder(
    agent,
    `
held = [agent.acquire(model_name=name) for name in ("p", "q", "r")]
print("held")
time.sleep(100)
`,
  );
  await users.waitFor(/held/);
  const received = await agent.metric("weightline_transfer_bytes_total", 'direction="in"');
  const output = await agent.python(`
import threading
codes = []
def one(name):
    for i in range(5):
        try: agent.acquire(model_name=name, timeout=30); codes.append("got")
        except weightline.Error as e: codes.append(e.code + (" free" if "free" in str(e) else ""))
all = [threading.Thread(target=one, args=(name,)) for name in ("s", "u") * 4]
for thread in all: thread.start()
for thread in all: thread.join()
print(len(codes), set(codes))
`);
  t.equal(output, "40 {'ResourceExhausted free'}");
  t.equal(await agent.metric("weightline_transfer_bytes_total", 'direction="in"'), received, "before the first byte");
  t.same(await names(agent), ["p", "q", "r"]);
  t.equal(
    await agent.python(
      'print([agent.acquire(model_name=name).object_digest[:4] != "" for name in ("p", "q", "r")], agent.status()["leases"] >= 3)',
    ),
    "[True, True, True] True",
  );
  await users.stop();
  // One place, two who want it at once: it goes to one, or to one after the other, never to both at once.
  await until(async () => (await agent.client.status({})).leases === 0);
  const both = await agent.python(`
import threading
got = {}
def one(name):
    try: got[name] = agent.acquire(model_name=name, timeout=30).object_digest
    except weightline.Error as e: got[name] = e.code
all = [threading.Thread(target=one, args=(name,)) for name in ("s", "u")]
for thread in all: thread.start()
for thread in all: thread.join()
print(sorted(len(one) for one in got.values()))
`);
  t.equal(both, "[64, 64]", "two places could be made");
  const { memory } = await agent.client.status({});
  t.ok((memory?.used ?? 0n) <= (memory?.limit ?? 0n));
  await agent.program.stop();
  await origin.program.stop();
});

t.test(
  "first what another node holds whole, though it was used last; another object of the name is no copy",
  async (t) => {
    const keeper = await cluster.startAgent("keeper");
    const agent = await cluster.startAgent("copies", LIMIT);
    t.equal(await load(keeper, "shared"), "");
    for (const name of ["alone", "twin"]) {
      t.equal(await load(agent, name), "");
    }
    // The same name there, other bytes.
    t.equal(await load(keeper, "twin"), "");
    await pull(agent, "shared");
    await agent.python('agent.acquire(model_name="shared").release()');
    t.equal(await load(agent, "new"), "");
    t.same(await names(agent), ["alone", "new", "twin"], "the copy of what the keeper has");
    await agent.python('agent.acquire(model_name="twin").release()');
    t.equal(await load(agent, "newer"), "");
    t.same(await names(agent), ["new", "newer", "twin"], "then by use: the twin's name elsewhere did not count");
    await agent.program.stop();
    await keeper.program.stop();
  },
);

t.test("without its holder's word a copy counts as the only one", async (t) => {
  const keeper = await cluster.startAgent("silent-keeper");
  const agent = await cluster.startAgent("lonely", LIMIT);
  t.equal(await load(keeper, "kept"), "");
  for (const name of ["old", "older"]) {
    t.equal(await load(agent, name), "");
  }
  await pull(agent, "kept");
  keeper.program.kill("SIGSTOP");
  try {
    t.equal(await load(agent, "next"), "");
    t.same(
      await names(agent),
      ["kept", "next", "older"],
      "least recently used, not the one that is said to be elsewhere",
    );
  } finally {
    keeper.program.kill("SIGCONT");
  }
  await agent.program.stop();
  await keeper.program.stop();
});

t.test("after a restart: what a pod still maps is not evicted unasked, and goes when it has left", async (t) => {
  const agent = await cluster.startAgent("again", LIMIT);
  for (const name of ["mapped", "idle", "idle-too"]) {
    t.equal(await load(agent, name), "");
  }
  const user = holder(agent, 'held = agent.acquire(model_name="mapped")\nprint("held")\ntime.sleep(100)');
  await user.waitFor(/held/);
  agent.program.kill("SIGKILL");
  await agent.program.exited;
  const again = await cluster.startAgent("again", [...LIMIT, "--store", agent.store, "--socket", agent.socket]);
  t.equal((await again.client.status({})).leases, 0, "the lease went with the agent");
  // It was used before the others since the restart, as far as the agent knows.
  for (const name of ["idle", "idle-too"]) {
    await again.python(`agent.acquire(model_name="${name}").release()`);
  }
  t.equal(await load(again, "next"), "");
  t.equal(await load(again, "after"), "");
  t.same(await names(again), ["after", "mapped", "next"], "the mapped one was passed over, twice");
  const refused = await load(again, "large", 3 * MODEL_BYTES);
  t.match(refused, /needed for the holding/, "all others would not be enough");
  t.match((await names(again)).join(), "mapped");
  user.kill("SIGKILL");
  await user.exited;
  t.equal(await load(again, "large", 3 * MODEL_BYTES), "");
  t.same(await names(again), ["large"]);
  await again.program.stop();
});

t.test(
  "what a grandchild still maps outlives its lease: not evicted unasked; asked, its memory waits for it",
  async (t) => {
    const agent = await cluster.startAgent("forks", LIMIT);
    for (const name of ["mapped", "idle", "idle-too"]) {
      t.equal(await load(agent, name), "");
    }
    // It acquires, forks twice, and is gone: the lease was its own, the mapping lives on.
    const family = holder(
      agent,
      `
held = agent.acquire(model_name="mapped")
t = held["w"].data
if os.fork() == 0:
    if os.fork() == 0:
        own = agent.acquire(model_name="idle")
        print("grandchild", os.getpid())
        time.sleep(60)
    os._exit(0)
os._exit(0)
`,
    );
    const [, pid] = await family.waitFor(/grandchild (\d+)/);
    t.ok(await until(async () => (await agent.client.status({})).leases === 1), "the grandchild's own alone");
    t.equal(await load(agent, "next"), "");
    t.same(await names(agent), ["idle", "mapped", "next"], "neither what is mapped nor what is leased");
    const asked = await cluster.mxctl(["evict", "--model-name", "mapped", "--output", "json"], agent);
    t.equal(asked.code, 0);
    t.ok(JSON.parse(asked.stdout).pending_bytes >= MODEL_BYTES);
    const evicting = async () =>
      (await agent.client.status({})).holdings.filter(({ state }) => state === HoldingState.EVICTING).length;
    t.equal(await evicting(), 1, "still counted");
    process.kill(Number(pid), "SIGKILL");
    t.ok(await until(async () => (await evicting()) === 0 && (await agent.client.status({})).leases === 0));
    t.same(await names(agent), ["idle", "next"]);
    await agent.program.stop();
  },
);
