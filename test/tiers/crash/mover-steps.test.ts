// kill -9 at system calls of the mover, swept over load, pull and eviction. For the mover alone strace kills; for the agent,
// both and the group it stops the mover at that call, and then the victims are killed, so that all of them end at that point.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { HoldingState, TransferState } from "@weightline/proto/common";
import t, { type Test } from "tap";
import { type Agent, createCluster } from "../../support/cluster.ts";
import type { Victim } from "../../support/crash-hook.ts";
import { moverOf, processState, until } from "../../support/processes.ts";
import { writeTensors } from "../../support/safetensors-file.ts";
import { contents } from "../../support/store-files.ts";
import { type Tracing, trace } from "../../support/tracing.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const origin = await cluster.startAgent("origin");

const BYTES = 30_000_000;
const CHUNK_BYTES = 65_536;
const STREAMS = 2;
/** promises.md, R2. */
const TWICE_PER_STREAM = 2;
/** Of each chunk's frame. */
const FRAME_BYTES = 48;
/** Layout, openings and control frames of two lives. */
const OTHER_BYTES = 16_384;

const model = `${cluster.folder}/model`;
mkdirSync(`${model}/sub`, { recursive: true });
writeTensors(`${model}/model.safetensors`, { w: { dtype: "U8", shape: [BYTES] } });
writeFileSync(`${model}/config.json`, "{}");
writeFileSync(`${model}/sub/tokenizer.json`, "[1]");
await cluster.mxctl(["load", model, "--model-name", "m"], origin);

const wanted = { name: { case: "model" as const, value: { modelName: "m" } } };

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // Its end is what counts.
  }
}

const pull = (agent: Agent) => all(agent.client.pull({ wanted }));
const load = (agent: Agent) => all(agent.client.load({ path: model, modelName: "m" }));
const evict = (agent: Agent) => agent.client.evict({ wanted });

interface Point {
  act: "load" | "pull" | "evict";
  call: string;
  /** Which one of a thread's calls. */
  when: number;
  victim: Victim;
}

const POINTS: readonly Point[] = [
  { act: "load", call: "mkdir", when: 1, victim: "mover" },
  { act: "load", call: "renameat", when: 1, victim: "agent" },
  { act: "load", call: "fallocate", when: 1, victim: "both" },
  { act: "load", call: "fallocate", when: 3, victim: "mover" },
  { act: "load", call: "pwrite64", when: 2, victim: "group" },
  { act: "load", call: "pwrite64", when: 9, victim: "agent" },
  { act: "load", call: "ioctl", when: 2, victim: "mover" },
  { act: "load", call: "ioctl", when: 4, victim: "group" },
  { act: "pull", call: "mkdirat", when: 1, victim: "agent" },
  { act: "pull", call: "renameat", when: 1, victim: "mover" },
  { act: "pull", call: "ftruncate", when: 1, victim: "group" },
  { act: "pull", call: "recvmsg", when: 2, victim: "both" },
  { act: "pull", call: "recvmsg", when: 30, victim: "mover" },
  { act: "pull", call: "pwrite64", when: 5, victim: "agent" },
  { act: "pull", call: "pwrite64", when: 60, victim: "mover" },
  { act: "pull", call: "pwrite64", when: 110, victim: "both" },
  { act: "pull", call: "recvmsg", when: 150, victim: "group" },
  { act: "pull", call: "ioctl", when: 2, victim: "agent" },
  { act: "pull", call: "ioctl", when: 6, victim: "mover" },
  { act: "evict", call: "unlinkat", when: 1, victim: "mover" },
  { act: "evict", call: "unlinkat", when: 4, victim: "agent" },
  { act: "evict", call: "unlinkat", when: 8, victim: "group" },
  { act: "evict", call: "rmdir", when: 1, victim: "both" },
];

let runs = 0;

/** Ends the victims at the point where the tracer has stopped the mover; true when it was reached. */
async function strike(agent: Agent, mover: number, victim: Victim, tracing: Tracing): Promise<boolean> {
  if (victim === "mover") {
    await until("the mover's end", () => processState(mover) === "" || processState(mover) === "Z");
    await tracing.tracer.exited;
    return tracing.text().includes("+++ killed by SIGKILL +++");
  }
  await until(
    "the mover's stop",
    () => ["T", "t"].includes(processState(mover)) && tracing.text().includes("stopped by SIGSTOP"),
  );
  const agentPid = agent.program.pid;
  if (victim === "group") {
    process.kill(-agentPid, "SIGKILL");
  } else {
    if (victim === "both") {
      process.kill(mover, "SIGKILL");
    }
    process.kill(agentPid, "SIGKILL");
  }
  await agent.program.exited;
  // Killed with its agent, at this very call.
  await until("the mover's end", () => processState(mover) === "");
  await tracing.tracer.exited;
  return true;
}

async function survives(t: Test, { act, call, when, victim }: Point): Promise<void> {
  const what = `${act}: ${victim} killed at the mover's ${call} ${when}`;
  const name = `n${runs++}`;
  const flags = ["--store", cluster.store(name), "--socket", `${cluster.folder}/${name}/agent.sock`];
  const agent = await cluster.startAgent(name, flags, { wrapper: ["setsid"] });
  if (act === "evict") {
    await pull(agent);
  }
  const mover = (await moverOf(agent.program.pid)) ?? 0;
  const tracing = await trace(mover, `${cluster.folder}/${name}.trace`, {
    calls: [call, "recvmsg"],
    inject: `${call}:signal=${victim === "mover" ? "KILL" : "STOP"}:when=${when}`,
  });
  const running = (act === "load" ? load(agent) : act === "pull" ? pull(agent) : evict(agent)).catch(() => undefined);
  if (!(await strike(agent, mover, victim, tracing))) {
    t.fail(`${what}: it was not reached`);
  }
  const first = tracing.returned("recvmsg");
  await running;
  const after = victim === "mover" ? agent : await cluster.startAgent(name, flags);
  if (act === "evict") {
    await evict(after).catch(() => undefined);
    await until("its end", () => readdirSync(`${after.store}/holdings`).length === 0);
  } else {
    await all(after.client.acquire({ wanted, timeoutS: 30 }));
  }
  const folders = readdirSync(`${after.store}/holdings`);
  const { holdings } = await after.client.status({});
  if (act !== "evict") {
    const folder = `${after.store}/holdings/${folders[0]}`;
    const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
    for (const file of ["model.safetensors", "config.json", "sub/tokenizer.json"]) {
      if (sha256(`${folder}/files/${file}`) !== sha256(`${model}/${file}`)) {
        t.fail(`${what}: ${file} has wrong bytes`);
      }
    }
    const files = Object.keys(contents(folder));
    if (
      folders.length !== 1 ||
      files.length !== 9 ||
      holdings.length !== 1 ||
      holdings[0]?.state !== HoldingState.COMPLETE
    ) {
      t.fail(`${what}: ${folders.length} folders, ${files}, ${holdings.map(({ state }) => state)}`);
    }
  }
  if (act === "pull") {
    // What the killed mover had counted itself may be lost: its receiving was traced.
    const { transfers } = await after.client.transfers({});
    const second = transfers
      .filter(({ state, error }) => state === TransferState.DONE || !error.includes("mover process ended"))
      .reduce((sum, { networkBytes }) => sum + Number(networkBytes), 0);
    const chunks = Math.ceil(BYTES / CHUNK_BYTES) + 2;
    const most = BYTES + chunks * FRAME_BYTES + OTHER_BYTES + TWICE_PER_STREAM * STREAMS * (CHUNK_BYTES + FRAME_BYTES);
    t.ok(first + second <= most, `${what}: ${first} and ${second} bytes, at most ${most} together`);
  }
  if (readdirSync(after.store).toSorted().join() !== "holdings,lock,node.json") {
    t.fail(`${what}: the store has ${readdirSync(after.store)}`);
  }
  const pids = [after.program.pid, (await moverOf(after.program.pid)) ?? 0, mover];
  await after.program.stop();
  await until("the end of its processes", () => pids.every((pid) => processState(pid) === ""));
  t.pass(what);
}

/** Runs that go on at once: one waits where the other works. */
const AT_ONCE = 2;

for (const act of ["load", "pull", "evict"] as const) {
  t.test(act, async (t) => {
    const points = POINTS.filter((point) => point.act === act);
    const workers = Array.from({ length: AT_ONCE }, async () => {
      for (let point = points.shift(); point !== undefined; point = points.shift()) {
        await survives(t, point);
      }
    });
    await Promise.all(workers);
  });
}
