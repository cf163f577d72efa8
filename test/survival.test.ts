import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { HoldingState } from "@weightline/proto/common";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { runCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());

const MEBIBYTE = 1 << 20;
const SIZE = 200 * MEBIBYTE;
const controlPlane = await cluster.startControlPlane();
const origin = await cluster.startAgent("origin");
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [SIZE] } });
await cluster.mxctl(["load", path, "--model-name", "m"], origin);

/** The same node again, on its store and socket. */
function restart(agent: Agent, flags: readonly string[] = []): Promise<Agent> {
  return cluster.startAgent(agent.name, ["--store", agent.store, "--socket", agent.socket, ...flags]);
}

async function moverPid(agent: Agent): Promise<number> {
  const { stdout } = await runCommand(["pgrep", "-P", String(agent.program.pid), "-f", "mover-main"]);
  return Number(stdout.trim());
}

const digestOf = (agent: Agent) =>
  agent.python('with agent.acquire(model_name="m", timeout=60) as held: print(held.object_digest, held.outcome)');
const received = (agent: Agent) => agent.metric("weightline_transfer_bytes_total", 'direction="in"');
const [digest] = (await digestOf(origin)).split(" ");

t.test("kill -9 of the agent: found again by its files, no byte moved or read", async (t) => {
  const agent = await cluster.startAgent("killed");
  await digestOf(agent);
  agent.program.kill("SIGKILL");
  await agent.program.exited;
  const again = await restart(agent);
  t.match(again.program.output(), /"complete":1,"resumed":0,"evicted":0,"checkedBytes":0/, "flagged files are trusted");
  t.equal(await digestOf(again), `${digest} held`);
  t.equal(await received(again), 0);
  t.ok((await again.client.status({})).epoch > 0n);
  await again.program.stop();
});

t.test(
  "kill -9 of agent and mover in the middle of a transfer: the rest comes, nothing twice, nothing leaks",
  async (t) => {
    for (const victim of ["agent", "mover", "both"] as const) {
      const agent = await cluster.startAgent(`middle-${victim}`);
      const waiting = agent.python('agent.acquire(model_name="m", timeout=60)').catch(() => "ended with its agent");
      let verified = 0n;
      for (let i = 0; i < 2000 && verified < 10n * BigInt(MEBIBYTE); i++) {
        await sleep(2);
        verified = (await agent.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
      }
      const mover = await moverPid(agent);
      t.ok(verified > 0n && verified < BigInt(SIZE), `${victim}: killed at ${verified} of ${SIZE} bytes`);
      if (victim !== "agent") {
        process.kill(mover, "SIGKILL");
      }
      let after = agent;
      if (victim !== "mover") {
        agent.program.kill("SIGKILL");
        await agent.program.exited;
        after = await restart(agent);
      }
      t.match(await digestOf(after), new RegExp(`^${digest} `));
      await waiting;
      if (victim !== "mover") {
        t.ok((await received(after)) < SIZE - Number(verified) + 16 * MEBIBYTE, "what was verified did not come again");
      } else {
        t.equal(await after.metric("weightline_mover_restarts_total"), 1);
      }
      const { holdings } = await after.client.status({});
      t.same(
        holdings.map(({ state }) => state),
        [HoldingState.COMPLETE],
      );
      t.equal(readdirSync(`${after.store}/holdings`).length, 1, "one folder, no leftover");
      await after.program.stop();
    }
  },
);

t.test("kill -9 in the middle of a load: it goes on by itself", async (t) => {
  const agent = await cluster.startAgent("loading", ["--load-threads", "1"]);
  const loading = cluster.mxctl(["load", path, "--model-name", "own"], agent);
  let verified = 0n;
  for (let i = 0; i < 2000 && verified < BigInt(MEBIBYTE); i++) {
    await sleep(1);
    verified = (await agent.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
  }
  agent.program.kill("SIGKILL");
  await agent.program.exited;
  t.equal((await loading).code, 4, "the caller is told that the agent went away");
  t.ok(verified > 0n && verified < BigInt(SIZE), `killed at ${verified} of ${SIZE} bytes`);
  const again = await restart(agent);
  const got = await again.python('with agent.acquire(model_name="own", timeout=60) as held: print(held.object_digest)');
  t.equal(got, digest, "the same bytes, the same object");
  await again.program.stop();
});

t.test("files without the flag are digested before they are served; a flipped bit is found then", async (t) => {
  const agent = await cluster.startAgent("unflagged");
  await digestOf(agent);
  await agent.program.stop();
  await runCommand(["chattr", "-R", "-i", agent.store]);
  const again = await restart(agent);
  t.match(
    again.program.output(),
    new RegExp(`"complete":1,.*"checkedBytes":${SIZE + 80}`.replace(`${SIZE + 80}`, "\\d{9}")),
    "read once",
  );
  t.equal(await digestOf(again), `${digest} held`);
  await again.program.stop();
  await runCommand(["chattr", "-R", "-i", agent.store]);
  const [id] = readdirSync(`${agent.store}/holdings`);
  await runCommand([
    "dd",
    "if=/dev/urandom",
    `of=${agent.store}/holdings/${id}/files/m.safetensors`,
    "bs=1",
    "count=8",
    "seek=100000000",
    "conv=notrunc",
  ]);
  const third = await restart(agent);
  await third.program.waitFor(/damaged: chunks do not have their digest/);
  t.match(await digestOf(third), new RegExp(`^${digest} `), "filled again from the origin, right bytes");
  await third.program.stop();
});

t.test(
  "the control plane is optional: attaches and running transfers go on without it, and it learns everything again",
  async (t) => {
    const agent = await cluster.startAgent("alone");
    await digestOf(agent);
    await controlPlane.stop();
    t.equal(await digestOf(agent), `${digest} held`);
    t.equal((await cluster.mxctl(["evict", "--model-name", "m"], agent)).code, 0);
    t.equal(await digestOf(agent), `${digest} received`, "the holder that it was told of is remembered");
    const missing = await cluster.mxctl(["pull", "--model-name", "never-seen"], agent);
    t.equal(missing.code, 4);
    t.match(missing.stderr, /control plane does not answer/);
    const [, port] = cluster.controlPlane().split(":");
    await cluster.startControlPlane(["--port", String(port)]);
    let nodes: Array<{ name: string; holdings: unknown[] }> = [];
    for (
      let i = 0;
      i < 100 &&
      !(
        nodes.some(({ name, holdings }) => name === "alone" && holdings.length === 1) &&
        nodes.some(({ name }) => name === "origin")
      );
      i++
    ) {
      await sleep(100);
      nodes = JSON.parse((await cluster.mxctl(["nodes", "--output", "json"])).stdout || "[]");
    }
    t.ok(
      nodes.some(({ name }) => name === "origin"),
      "both announced themselves again",
    );
    await agent.program.stop();
  },
);

t.test("no control plane at the start: the agent serves what it holds and keeps trying", async (t) => {
  const agent = await cluster.startAgent("early");
  await digestOf(agent);
  await agent.program.stop();
  // Nobody listens on the discard port.
  const flags = ["--control-plane", "127.0.0.1:9"];
  const lonely = cluster.startAgent("early", ["--store", agent.store, "--socket", agent.socket, ...flags]);
  // It never announces itself, which startAgent would wait for.
  lonely.catch(() => undefined);
  let outcome = "";
  for (let i = 0; i < 100 && outcome === ""; i++) {
    await sleep(100);
    outcome = await digestOf(agent).catch(() => "");
  }
  t.equal(outcome, `${digest} held`);
  const health = await cluster.mxctl(["health", "--only", "node-agent"], agent);
  t.equal(health.code, 0, "ready without a control plane");
  t.match(health.stdout, /control plane .*cannot be reached/);
});

t.test("SIGTERM ends a transferring agent soon, and the transfer goes on at the next start", async (t) => {
  const agent = await cluster.startAgent("stopped");
  const waiting = agent.python('agent.acquire(model_name="m", timeout=60)').catch(() => "");
  for (let i = 0; i < 2000 && ((await agent.client.status({})).holdings[0]?.verifiedBytes ?? 0n) === 0n; i++) {
    await sleep(2);
  }
  t.equal(await agent.program.stop(), 0, "exit code 0");
  await waiting;
  const again = await restart(agent);
  t.match(await digestOf(again), new RegExp(`^${digest} `));
});
