// kill -9 before every step of load, pull, refill, evict and restart that the agent takes or hands to its mover: of the agent,
// of the mover, of both, of the whole process group. The hook writes each step down before it is taken, and so proves the kill.
import { createHash } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, writeSync } from "node:fs";
import { HoldingState } from "@weightline/proto/common";
import t, { type Test } from "tap";
import { type Agent, createCluster } from "../../support/cluster.ts";
import type { Victim } from "../../support/crash-hook.ts";
import { type CrashStep, crashEnvironment, readSteps } from "../../support/crash-plan.ts";
import { until } from "../../support/processes.ts";
import { writeTensors } from "../../support/safetensors-file.ts";
import { clearFlags, contents } from "../../support/store-files.ts";

const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");
const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const origin = await cluster.startAgent("origin");
const BYTES = 1_000_000;
const path = `${cluster.folder}/m.safetensors`;
const right = sha256(writeTensors(path, { w: { dtype: "U8", shape: [BYTES] } }));
await cluster.mxctl(["load", path, "--model-name", "m"], origin);

const VICTIMS: readonly Victim[] = ["agent", "mover", "both", "group"];
const SIZE_OF_A_HOLDING = ["digests", "files", "files/m.safetensors", "layout", "record.json", "verified"];

/** What is killed in the middle of: how it is prepared, what is asked of the agent, and what must be there afterwards. */
interface Procedure {
  name: string;
  /** Leaves a store for the agent that will be killed. */
  prepare?: (agent: Agent) => Promise<void>;
  /** May fail: its agent is killed. */
  act: (agent: Agent) => Promise<unknown>;
  /** The step from which on it is swept: the agent's first one, or its first after it said that it is ready. */
  begins: string;
  /** True when the model must be gone at the end. */
  evicts?: boolean;
}

const wanted = { name: { case: "model" as const, value: { modelName: "m" } } };

/** Acquires the model, and gives the digest of the bytes that lie in the store then. */
async function digestOf(agent: Agent): Promise<string> {
  let id = "";
  for await (const { event } of agent.client.acquire({ wanted, timeoutS: 30 })) {
    id = event.case === "held" ? (event.value.holding?.holdingId ?? "") : id;
  }
  return sha256(readFileSync(`${agent.store}/holdings/${id}/files/m.safetensors`));
}

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // Its end is what counts.
  }
}

const pull = (agent: Agent) => all(agent.client.pull({ wanted }));
const load = (agent: Agent) => all(agent.client.load({ path, modelName: "m" }));

async function spoil(agent: Agent): Promise<void> {
  await clearFlags(agent.store);
  const [id] = readdirSync(`${agent.store}/holdings`);
  const descriptor = openSync(`${agent.store}/holdings/${id}/files/m.safetensors`, "r+");
  writeSync(descriptor, Buffer.from("spoiled!"), 0, 8, BYTES / 2);
  closeSync(descriptor);
}

const PROCEDURES: readonly Procedure[] = [
  { name: "load", act: load, begins: "ready" },
  { name: "pull", act: pull, begins: "ready" },
  { name: "evict", prepare: pull, act: (agent) => agent.client.evict({ wanted }), begins: "ready", evicts: true },
  { name: "restart", prepare: pull, act: async () => undefined, begins: "mkdir holdings" },
  {
    name: "restart with a damaged holding, and its refill",
    async prepare(agent) {
      await pull(agent);
      await agent.program.stop();
      await spoil(agent);
    },
    act: digestOf,
    begins: "order check",
  },
];

let runs = 0;

/** One agent with a plan, taken through the procedure; killed or not, all of it has ended when this settles. */
async function run(procedure: Procedure, plan: { step?: CrashStep; victim?: Victim }) {
  const name = `n${runs++}`;
  const log = `${cluster.folder}/${name}.steps`;
  const store = cluster.store(name);
  const socket = `${cluster.folder}/${name}/agent.sock`;
  const flags = ["--store", store, "--socket", socket];
  if (procedure.prepare !== undefined) {
    const before = await cluster.startAgent(name, flags);
    await procedure.prepare(before);
    await before.program.stop();
  }
  const { step, victim } = plan;
  const env = crashEnvironment({
    log,
    ...(step === undefined ? {} : { role: step.role, step: step.step, nth: step.nth }),
    ...(victim === undefined ? {} : { victim }),
  });
  const agent = await cluster.startAgent(name, flags, { env, wrapper: ["setsid"] }).catch(() => undefined);
  const stepsOfStart = readSteps(log).length;
  if (agent !== undefined) {
    await procedure.act(agent).catch(() => undefined);
  }
  return { name, log, store, flags, agent, stepsOfStart };
}

async function survives(t: Test, procedure: Procedure, step: CrashStep, victim: Victim): Promise<void> {
  const what = `${procedure.name}: ${victim} killed before ${step.role}'s "${step.step}" (${step.nth})`;
  const { name, log, store, flags, agent } = await run(procedure, { step, victim });
  const fired = readSteps(log).filter((entry) => entry.fired);
  if (fired.length !== 1) {
    t.fail(`${what}: it was not reached`);
    await agent?.program.stop();
    return;
  }
  let after = agent;
  if (victim !== "mover") {
    await agent?.program.exited;
    after = await cluster.startAgent(name, flags);
  } else if (agent === undefined) {
    t.fail(`${what}: the agent did not outlive its mover`);
    return;
  }
  if (after === undefined) {
    return;
  }
  if (procedure.evicts === true) {
    // Killed before its record said so, the eviction was never begun: it is asked for again then.
    await after.client.evict({ wanted }).catch(() => undefined);
    await until("its end", () => readdirSync(`${store}/holdings`).length === 0);
  } else {
    const digest = await digestOf(after);
    if (digest !== right) {
      t.fail(`${what}: wrong bytes`);
    }
  }
  await until("a mover", async () => (await after.client.status({})).notReady.length === 0);
  const { holdings } = await after.client.status({});
  const count = procedure.evicts === true ? 0 : 1;
  const folders = readdirSync(`${store}/holdings`);
  const leaked =
    holdings.length !== count ||
    holdings.some(({ state }) => state !== HoldingState.COMPLETE) ||
    folders.length !== count ||
    folders.some((id) => Object.keys(contents(`${store}/holdings/${id}`)).join() !== SIZE_OF_A_HOLDING.join()) ||
    readdirSync(store).toSorted().join() !== "holdings,lock,node.json";
  if (leaked) {
    t.fail(`${what}: the store has ${Object.keys(contents(store))}, ${holdings.map(({ state }) => state)}`);
  }
  await after.program.stop();
  t.pass(what);
}

/** Every text once, the first and the last of its kind where it comes several times. */
function swept(steps: readonly CrashStep[]): CrashStep[] {
  const last = new Map(steps.map((step) => [`${step.role} ${step.step}`, step.nth]));
  return steps.filter(({ role, step, nth }) => nth === 1 || nth === last.get(`${role} ${step}`));
}

/** Runs that go on at once: one waits where the other works. */
const AT_ONCE = 2;
let turn = 0;

for (const procedure of PROCEDURES) {
  t.test(procedure.name, async (t) => {
    const dry = await run(procedure, {});
    await dry.agent?.program.stop();
    const taken = readSteps(dry.log);
    const begun =
      procedure.begins === "ready" ? dry.stepsOfStart : taken.findIndex(({ step }) => step === procedure.begins);
    const steps = swept(taken).filter((step) => taken.indexOf(step) >= begun);
    t.comment(`${procedure.name}: ${steps.map(({ role, step, nth }) => `${role} ${step} (${nth})`).join("; ")}`);
    t.ok(steps.length >= 3, `${steps.length} steps`);
    const kills = steps.flatMap((step) => {
      turn += 1;
      // One of the four at each step, in turn; two at the record's rename, which says what a holding is.
      const offsets = step.step === "rename record.json" ? [0, 2] : [0];
      return offsets.map((offset) => ({ step, victim: VICTIMS[(turn + offset) % VICTIMS.length] ?? "agent" }));
    });
    const workers = Array.from({ length: AT_ONCE }, async () => {
      for (let kill = kills.shift(); kill !== undefined; kill = kills.shift()) {
        await survives(t, procedure, kill.step, kill.victim);
      }
    });
    await Promise.all(workers);
  });
}
