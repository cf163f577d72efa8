// Clients that mean harm beside one that does not: it is answered, and the agent does not grow.
import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { pssBytes } from "../../../bench/measure.ts";
import { createCluster } from "../../support/cluster.ts";
import { ROOT, startCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const agent = await cluster.startAgent("a");
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [1_000_000], data: Buffer.alloc(1_000_000, 7) } });
await cluster.load(agent, path, "m");

const descriptors = () => readdirSync(`/proc/${agent.program.pid}/fd`).length;
/** What a log may grow by in one attack: each kind of line ten times in ten seconds. */
const LOG_MAX_BYTES = 20_000;
const GROWTH_MAX_BYTES = 48 * 2 ** 20;

function attack(kind: string) {
  return startCommand(["python3", "-u", `${ROOT}test/support/hostile_client.py`, kind, agent.socket], {
    env: { PYTHONPATH: `${ROOT}test/support`, PYTHONDONTWRITEBYTECODE: "1" },
  });
}

const WELL_BEHAVED = `
for i in range(40):
    with agent.acquire(model_name="m", timeout=30) as held: assert held["w"].data[999_999] == 7
    agent.status()
print("answered")
`;

/** Each with how its harm is seen to have been done. */
const ATTACKS: ReadonlyArray<readonly [string, number, RegExp]> = [
  ["silent", 1, /begun 512/],
  ["silent", 8, /begun 512/],
  ["reconnect", 2, /connected \d{5,}/],
  ["unread", 2, /closed by the agent/],
  ["leases", 2, /tried \d{4,} got \d+/],
  ["calls", 2, /begun/],
  ["descriptors", 2, /messages \d{4,}/],
];

const quiet = { descriptors: 0, memory: 0 };

for (const [kind, processes, proof] of ATTACKS) {
  t.test(`${kind}, ${processes} process(es)`, async (t) => {
    // The first time fills the heap and the caches; the second shows whether it stays there.
    for (const round of ["first", "second"]) {
      await sleep(500);
      quiet.descriptors = descriptors();
      quiet.memory = pssBytes(agent.program.pid);
      const logged = agent.program.output().length;
      const hostile = Array.from({ length: processes }, () => attack(kind));
      await Promise.all(hostile.map((one) => one.waitFor(/begun/)));
      t.equal(await agent.python(WELL_BEHAVED), "answered", round);
      await Promise.all(hostile.map((one) => one.waitFor(proof, 60_000)));
      t.ok(descriptors() < quiet.descriptors + 600, `${descriptors()} descriptors under attack`);
      for (const one of hostile) {
        one.kill("SIGKILL");
      }
      await Promise.all(hostile.map((one) => one.exited));
      for (let i = 0; i < 100 && descriptors() > quiet.descriptors; i++) {
        await sleep(50);
      }
      t.ok(descriptors() <= quiet.descriptors, `${quiet.descriptors} to ${descriptors()} descriptors`);
      t.equal((await agent.client.status({})).leases, 0);
      t.ok(agent.program.output().length - logged < LOG_MAX_BYTES, "its log is bounded");
      if (round === "second") {
        const grown = pssBytes(agent.program.pid) - quiet.memory;
        t.ok(grown < GROWTH_MAX_BYTES, `${(grown / 2 ** 20).toFixed(1)} MiB more`);
      }
    }
  });
}

t.test("and after all of it", async (t) => {
  t.equal(await agent.python(WELL_BEHAVED), "answered");
  const metrics = await agent.metrics();
  for (const limit of ["connections", "calls", "unread"]) {
    t.match(metrics, `weightline_local_refusals_total{limit="${limit}"}`);
  }
});
