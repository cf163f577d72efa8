// Clients that mean harm beside one that does not: it is answered, and the agent does not grow.
import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { CONNECTIONS_MAX } from "../../../packages/node-agent/src/local/limits.ts";
import { createCluster } from "../../support/cluster.ts";
import { heapBytes, INSPECTABLE } from "../../support/heap.ts";
import { ROOT, startCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const agent = await cluster.startAgent("a", [], INSPECTABLE);
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [1_000_000], data: Buffer.alloc(1_000_000, 7) } });
await cluster.load(agent, path, "m");

const descriptors = () => readdirSync(`/proc/${agent.program.pid}/fd`).length;
/** What a log may grow by in one attack: each kind of line ten times in ten seconds. */
const LOG_MAX_BYTES = 20_000;
const GROWTH_MAX_BYTES = 4 * 2 ** 20;

function attack(kind: string) {
  return startCommand(["python3", "-u", `${ROOT}test/support/hostile_client.py`, kind, agent.socket], {
    env: { PYTHONPATH: `${ROOT}test/support`, PYTHONDONTWRITEBYTECODE: "1" },
  });
}

const WELL_BEHAVED = `
for i in range(15):
    with agent.acquire(model_name="m", timeout=30) as held: assert held["w"].data[999_999] == 7
    agent.status()
print("answered")
`;

/** Each with how its harm is seen to have been done. */
const ATTACKS: ReadonlyArray<readonly [string, number, RegExp]> = [
  ["silent", 1, /begun 512/],
  ["silent", 4, /begun 512/],
  ["reconnect", 2, /connected \d{5,}/],
  ["unread", 1, /closed by the agent/],
  ["leases", 1, /tried \d{4,} got [1-9]\d*/],
  ["calls", 2, /rounds \d+/],
  ["descriptors", 2, /messages \d{4,}/],
];

// What is opened once: the watch of processes, the inspector.
await agent.python(WELL_BEHAVED);
await heapBytes(agent.program);

for (const [kind, processes, proof] of ATTACKS) {
  t.test(`${kind}, ${processes} process(es)`, async (t) => {
    const quiet = { descriptors: descriptors(), heap: await heapBytes(agent.program) };
    const logged = agent.program.output().length;
    const hostile = Array.from({ length: processes }, () => attack(kind));
    await Promise.all(hostile.map((one) => one.waitFor(/begun/)));
    t.equal(await agent.python(WELL_BEHAVED), "answered");
    await Promise.all(hostile.map((one) => one.waitFor(proof, 60_000)));
    t.ok(descriptors() < quiet.descriptors + 600, `${descriptors()} descriptors under attack`);
    for (const one of hostile) {
      one.kill("SIGKILL");
    }
    await Promise.all(hostile.map((one) => one.exited));
    for (let i = 0; i < 200 && (descriptors() > quiet.descriptors || (await agent.client.status({})).leases > 0); i++) {
      await sleep(50);
    }
    t.equal((await agent.client.status({})).leases, 0);
    // This test's own connections, and the inspector's.
    t.ok(descriptors() <= quiet.descriptors + 4, `${quiet.descriptors} to ${descriptors()} descriptors`);
    t.ok(agent.program.output().length - logged < LOG_MAX_BYTES, "its log is bounded");
    const grown = (await heapBytes(agent.program)) - quiet.heap;
    t.ok(grown < GROWTH_MAX_BYTES, `${(grown / 2 ** 20).toFixed(1)} MiB more`);
  });
}

t.test(
  "70 processes with 16 silent connections each: all of them together are bounded, a newcomer is answered",
  async (t) => {
    const before = descriptors();
    const crowd = attack("crowd");
    await crowd.waitFor(/begun 70/, 60_000);
    const open = () => descriptors() - before;
    for (let i = 0; i < 200 && open() < CONNECTIONS_MAX; i++) {
      await sleep(50);
    }
    // A connection, and one more descriptor for each process.
    t.ok(open() >= CONNECTIONS_MAX, `${open()} descriptors: the bound is reached`);
    t.ok(open() <= CONNECTIONS_MAX + 70 + 4, `${open()} descriptors`);
    t.equal(await agent.python(WELL_BEHAVED), "answered");
    t.ok(open() <= CONNECTIONS_MAX + 70 + 8, `${open()} descriptors`);
    crowd.kill("SIGKILL");
    for (let i = 0; i < 200 && open() > 4; i++) {
      await sleep(50);
    }
    t.ok(open() <= 4, `${open()} are left`);
  },
);

t.test("and after all of it", async (t) => {
  t.equal(await agent.python(WELL_BEHAVED), "answered");
  const metrics = await agent.metrics();
  for (const limit of ["connections", "calls", "unread"]) {
    t.match(metrics, `weightline_local_refusals_total{limit="${limit}"}`);
  }
});
