// What happens is in the log, under its name, and nobody can flood it.
import { setTimeout as sleep } from "node:timers/promises";
import { AgentService } from "@weightline/proto/local";
import { BOUNDED_LINES_PER_SECOND, createLocalClient } from "@weightline/runtime";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const a = await cluster.startAgent("a", ["--memory-limit", "10MB"]);
const b = await cluster.startAgent("b");
const model = (name: string, bytes: number) => {
  const path = `${cluster.folder}/${name}.safetensors`;
  writeTensors(path, { w: { dtype: "U8", shape: [bytes] } });
  return path;
};

type Line = Record<string, unknown>;
const events = (agent: Agent, name: string): Line[] =>
  agent.program
    .output()
    .split("\n")
    .filter((line) => line.startsWith("{") && line.includes(`"event":"${name}"`))
    .map((line) => JSON.parse(line) as Line);

/** Waits for lines of one event that satisfy. */
async function waitFor(agent: Agent, name: string, enough: (lines: Line[]) => boolean): Promise<Line[]> {
  for (let i = 0; i < 1000 && !enough(events(agent, name)); i++) {
    await sleep(10);
  }
  return events(agent, name);
}
const one = (lines: Line[]) => lines.length > 0;

t.test("a refused call: the id that its caller has finds the line", async (t) => {
  const done = await cluster.mxctl(["-v", "pull", "--model-name", "none"], a);
  t.equal(done.code, 3);
  const [, request] = /^ {2}request: ([0-9a-f]{8}) /m.exec(done.stderr) ?? [];
  const lines = await waitFor(a, "call-failed", (all) => all.some((line) => line["request"] === request));
  t.match(
    lines.filter((line) => line["request"] === request),
    [{ code: "NotFound", method: "weightline.local.v1.AgentService/Pull", error: /no node holds none/ }],
  );
});

t.test("evictions: asked for, and to make room", async (t) => {
  t.equal((await cluster.mxctl(["load", model("first", 6_000_000), "--model-name", "first"], a)).code, 0);
  t.equal((await cluster.mxctl(["load", model("second", 6_000_000), "--model-name", "second"], a)).code, 0);
  t.match(await waitFor(a, "evicted", one), [{ model: "first", why: "room", freed_bytes: Number }]);
  t.equal((await cluster.mxctl(["evict", "--model-name", "second"], a)).code, 0);
  const lines = await waitFor(a, "evicted", (all) => all.length > 1);
  t.match(lines.at(-1), { model: "second", why: "asked" });
});

t.test("a peer that is gone, a mover that dies, a process with leases that ends", async (t) => {
  t.equal((await cluster.mxctl(["load", model("third", 3_000_000), "--model-name", "third"], b)).code, 0);
  t.equal(await a.python('held = agent.acquire(model_name="third")\nprint(held.outcome)'), "received");
  t.match(await waitFor(a, "leases-ended", one), [{ leases: 1, process: Number }]);
  const { checks } = await a.client.doctor({});
  const mover = /process (\d+)/.exec(checks.find(({ name }) => name === "mover")?.evidence ?? "")?.[1];
  process.kill(Number(mover), "SIGKILL");
  t.match(await waitFor(a, "mover-ended", one), [{ signal: "SIGKILL", again_in_ms: Number }]);
});

t.test("R7: one caller's refusals cannot fill the log", async (t) => {
  const client = createLocalClient(AgentService, a.socket);
  const before = events(a, "call-failed").length;
  const started = performance.now();
  const CALLS = 500;
  for (let i = 0; i < CALLS; i += 10) {
    await Promise.all(
      Array.from({ length: 10 }, () =>
        client.release({ leaseId: "x" }).then(() => client.attach({ leaseId: "x" }).catch(() => undefined)),
      ),
    );
  }
  const count = (lines: Line[]) => lines.slice(before).reduce((sum, line) => sum + Number(line["left_out"] ?? 1), 0);
  const lines = await waitFor(a, "call-failed", (all) => count(all) >= CALLS);
  t.equal(count(lines), CALLS, "each is a line, or counted");
  const seconds = Math.ceil((performance.now() - started) / 1000);
  const written = lines.length - before;
  t.ok(written <= (BOUNDED_LINES_PER_SECOND + 1) * (seconds + 1), `${written} lines in ${seconds} s`);
  t.ok(written < CALLS);
});
