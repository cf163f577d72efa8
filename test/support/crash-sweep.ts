import { createHash } from "node:crypto";
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from "node:fs";
import { HoldingState } from "@weightline/proto/common";
import type { Test } from "tap";
import type { Agent, Cluster } from "./cluster.ts";
import type { Victim } from "./crash-hook.ts";
import { type CrashStep, crashEnvironment, readSteps } from "./crash-plan.ts";
import { until } from "./processes.ts";
import { runCommand } from "./program.ts";
import { writeTensors } from "./safetensors-file.ts";
import { clearFlags, contents } from "./store-files.ts";

/** What is killed in the middle of: from which store it starts, what is asked of the agent, what must be there afterwards. */
export interface Procedure {
  name: string;
  /** The agent that is killed finds a complete holding, or one with wrong bytes; nothing when this is left out. */
  finds?: "complete" | "damaged";
  /** May fail: its agent is killed. */
  act: (agent: Agent) => Promise<unknown>;
  /** The step from which on it is swept; "ready": the first one after the agent said that it is. */
  begins: string;
  /** What must be there at the end; "held", the model whole, when it is left out. "offered": all of the offer, or nothing of it. */
  leaves?: "held" | "nothing" | "offered";
}

/** Kills agents before every step of procedures. */
export interface CrashSweep {
  sweep(t: Test, procedure: Procedure): Promise<void>;
  load(agent: Agent): Promise<void>;
  pull(agent: Agent): Promise<void>;
  evict(agent: Agent): Promise<unknown>;
  /** A pod offers tensors of another name and seals them. */
  offer(agent: Agent): Promise<unknown>;
  /** Acquires the model, and gives the digest of the bytes that lie in the store then. */
  digestOf(agent: Agent): Promise<string>;
}

const VICTIMS: readonly Victim[] = ["agent", "mover", "both", "group"];
const FILES_OF_A_HOLDING = ["digests", "files", "files/m.safetensors", "layout", "record.json", "verified"];
const FILES_OF_AN_OFFER = ["digests", "files", "files/0000", "layout", "record.json", "verified"];
const BYTES = 1_000_000;
const OFFERED = Buffer.alloc(200_000, 7);
/** Runs that go on at once: one waits where the other works. */
const AT_ONCE = 2;
const wanted = { name: { case: "model" as const, value: { modelName: "m" } } };
const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // Its end is what counts.
  }
}

async function digestOf(agent: Agent): Promise<string> {
  let id = "";
  for await (const { event } of agent.client.acquire({ wanted, timeoutS: 30 })) {
    id = event.case === "held" ? (event.value.holding?.holdingId ?? "") : id;
  }
  return sha256(readFileSync(`${agent.store}/holdings/${id}/files/m.safetensors`));
}

function spoil(store: string): void {
  const [id] = readdirSync(`${store}/holdings`);
  const descriptor = openSync(`${store}/holdings/${id}/files/m.safetensors`, "r+");
  writeSync(descriptor, Buffer.from("spoiled!"), 0, 8, BYTES / 2);
  closeSync(descriptor);
}

/** Every text once, the first and the last of its kind where it comes several times. */
function swept(steps: readonly CrashStep[]): CrashStep[] {
  const last = new Map(steps.map((step) => [`${step.role} ${step.step}`, step.nth]));
  return steps.filter(({ role, step, nth }) => nth === 1 || nth === last.get(`${role} ${step}`));
}

/** A control plane and an origin with one model, for sweeps over other agents of this cluster. */
export async function createCrashSweep(cluster: Cluster): Promise<CrashSweep> {
  await cluster.startControlPlane();
  const origin = await cluster.startAgent("origin");
  const path = `${cluster.folder}/m.safetensors`;
  const right = sha256(writeTensors(path, { w: { dtype: "U8", shape: [BYTES] } }));
  const load = (agent: Agent) => all(agent.client.load({ path, modelName: "m" }));
  const pull = (agent: Agent) => all(agent.client.pull({ wanted }));
  const evict = (agent: Agent) => agent.client.evict({ wanted });
  const offer = (agent: Agent) =>
    agent.python(
      `identity = {"model_name": "offered", "extra_parameters": {"weightline.kind": "tensors"}}
with agent.offer(identity=identity, tensors=[("w", "U8", (${OFFERED.length},))]) as filling:
    filling.write("w", bytes([7]) * ${OFFERED.length})
    filling.seal()`,
    );
  await load(origin);
  const template = await cluster.startAgent("template");
  await pull(template);
  await template.program.stop();
  await clearFlags(template.store);
  // A store is one node's: whoever gets a copy makes its own.
  rmSync(`${template.store}/node.json`);
  let runs = 0;
  let turn = 0;

  const copyTemplate = async (store: string, finds: "complete" | "damaged") => {
    mkdirSync(store);
    await runCommand(["cp", "-a", `${template.store}/holdings`, store]);
    if (finds === "damaged") {
      spoil(store);
      return;
    }
    await runCommand(["find", store, "-path", "*/files/*", "-type", "f", "-exec", "chattr", "+i", "{}", "+"]);
  };

  /** One agent with a plan, taken through the procedure; killed or not, all of it has ended when this settles. */
  const run = async (procedure: Procedure, plan: { step?: CrashStep; victim?: Victim }) => {
    const name = `n${runs++}`;
    const log = `${cluster.folder}/${name}.steps`;
    const store = cluster.store(name);
    const flags = ["--store", store, "--socket", `${cluster.folder}/${name}/agent.sock`];
    if (procedure.finds !== undefined) {
      await copyTemplate(store, procedure.finds);
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
  };

  const survives = async (t: Test, procedure: Procedure, step: CrashStep, victim: Victim): Promise<void> => {
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
    if (procedure.leaves === "nothing") {
      // Killed before its record said so, the eviction was never begun: it is asked for again then.
      await evict(after).catch(() => undefined);
      await until("its end", () => readdirSync(`${store}/holdings`).length === 0);
    } else if (procedure.leaves === "offered") {
      // Unfinished, it goes with its pod or at the next start; sealed, it is whole.
      await until("its end", async () =>
        (await after.client.status({})).holdings.every(({ state }) => state === HoldingState.COMPLETE),
      );
      for (const id of readdirSync(`${store}/holdings`)) {
        if (!readFileSync(`${store}/holdings/${id}/files/0000`).equals(OFFERED)) {
          t.fail(`${what}: wrong bytes`);
        }
      }
    } else {
      const digest = await digestOf(after);
      if (digest !== right) {
        t.fail(`${what}: wrong bytes`);
      }
    }
    await until("a mover", async () => (await after.client.status({})).notReady.length === 0);
    const { holdings } = await after.client.status({});
    const files = procedure.leaves === "offered" ? FILES_OF_AN_OFFER : FILES_OF_A_HOLDING;
    const count = procedure.leaves === "nothing" ? 0 : procedure.leaves === "offered" ? holdings.length : 1;
    const folders = readdirSync(`${store}/holdings`);
    const leaked =
      holdings.length !== count ||
      holdings.some(({ state }) => state !== HoldingState.COMPLETE) ||
      folders.length !== count ||
      folders.some((id) => Object.keys(contents(`${store}/holdings/${id}`)).join() !== files.join()) ||
      readdirSync(store).toSorted().join() !== "holdings,lock,node.json";
    if (leaked) {
      t.fail(`${what}: the store has ${Object.keys(contents(store))}, ${holdings.map(({ state }) => state)}`);
    }
    await after.program.stop();
    t.pass(what);
  };

  const sweep = async (t: Test, procedure: Procedure): Promise<void> => {
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
  };

  return { sweep, load, pull, evict, offer, digestOf };
}
