// A mover that dies again and again: back-off, words about it, and what does not need it goes on.
import { readdirSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { crashEnvironment, readSteps } from "./support/crash-plan.ts";
import { moverOf, runningMoverOf, until } from "./support/processes.ts";
import { writeTensors } from "./support/safetensors-file.ts";
import { clearFlags, contents } from "./support/store-files.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const a = await cluster.startAgent("a");
const b = await cluster.startAgent("b");
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [5_000_000] } });
await cluster.mxctl(["load", path, "--model-name", "m"], a);
await cluster.mxctl(["pull", "--model-name", "m"], b);

async function killMover(agent: Agent): Promise<void> {
  await until("a mover", async () => (await moverOf(agent.program.pid)) !== undefined);
  const pid = await runningMoverOf(agent.program.pid);
  process.kill(pid, "SIGKILL");
  await until("its end", async () => (await moverOf(agent.program.pid)) !== pid);
}

/** Kills movers until the back-off is at its longest, and leaves the agent without one. */
async function crashLoop(agent: Agent, times: number): Promise<void> {
  for (let i = 0; i < times; i++) {
    await killMover(agent);
  }
}

/** Kills every mover that comes until the returned function has stopped it. */
function keepAway(agent: Agent): () => Promise<void> {
  let stop = false;
  const running = (async () => {
    while (!stop) {
      const pid = await moverOf(agent.program.pid);
      if (pid !== undefined && pid > 0) {
        process.kill(pid, "SIGKILL");
      }
      await sleep(20);
    }
  })();
  return () => {
    stop = true;
    return running;
  };
}

const readyz = async (agent: Agent) => {
  const reply = await fetch(`http://127.0.0.1:${agent.metricsPort}/readyz`);
  return { status: reply.status, text: await reply.text() };
};

t.test("back-off that grows; /readyz and status say how often, why and when; what is held is attached", async (t) => {
  await crashLoop(a, 6);
  // However long the rest takes: none comes back meanwhile.
  const letCome = keepAway(a);
  t.teardown(letCome);
  const waits = () =>
    [...a.program.output().matchAll(/"in_a_row":(\d+),"again_in_ms":(\d+)/g)].map(([, row, ms]) => [
      Number(row),
      Number(ms),
    ]);
  await until("the sixth end in the log", () => waits().length >= 6);
  t.same(waits().slice(0, 6), [
    [1, 100],
    [2, 200],
    [3, 400],
    [4, 800],
    [5, 1600],
    [6, 3200],
  ]);
  const words = /the mover ended \d+ times in a row \(killed by SIGKILL\); it is started again in \d\.\d s/;
  await until("words", async () => words.test((await readyz(a)).text));
  t.equal((await readyz(a)).status, 503);
  await until("words in the status", async () => words.test((await a.client.status({})).notReady.join()));
  const status = await a.client.status({});
  t.ok(status.moverRestarts >= 5n);
  t.equal(status.dataAddress, "", "nobody is sent to it");
  t.ok((await a.metric("weightline_mover_restarts_total")) >= 5);
  t.equal(await a.python('with agent.acquire(model_name="m") as held: print(held.outcome)'), "held");

  // A child is told at once, and takes another holder.
  const c = await cluster.startAgent("c");
  t.equal((await cluster.mxctl(["pull", "--model-name", "m"], c)).code, 0);
  const { transfers } = await c.client.transfers({});
  t.same(
    transfers.map(({ parent }) => parent),
    ["b"],
    "the one whose mover is away opened nothing",
  );
  t.match(c.program.output(), /the mover ended \d+ times in a row/);

  await letCome();
  await until("readiness", async () => (await readyz(a)).status === 200);
  t.same((await a.client.status({})).notReady, []);
  await c.program.stop();
});

t.test("its port is taken when it comes back: tried again until it is free, at the same address", async (t) => {
  const port = Number(b.dataAddress.slice(b.dataAddress.lastIndexOf(":") + 1));
  const takePort = () =>
    new Promise<Server | undefined>((resolve) => {
      const server = createServer();
      server.once("error", () => resolve(undefined));
      server.listen(port, "127.0.0.1", () => resolve(server));
    });
  let server: Server | undefined;
  while (server === undefined) {
    await killMover(b);
    for (let i = 0; i < 20 && server === undefined; i++) {
      server = await takePort();
    }
  }
  await b.program.waitFor(/"why":"the data port [^"]*cannot be opened[^"]*"/);
  await until("words", async () => (await readyz(b)).text.includes("cannot be opened"));
  t.match(
    (await b.client.status({})).notReady.join(),
    new RegExp(`data port .*${port} \\(--data-port\\) cannot be opened`),
  );
  t.equal(await b.python('with agent.acquire(model_name="m") as held: print(held.outcome)'), "held");
  server.close();
  await until("readiness", async () => (await readyz(b)).status === 200);
  t.equal((await b.client.status({})).dataAddress, b.dataAddress);
});

t.test("what waits for a mover keeps no stop waiting", async (t) => {
  const other = `${cluster.folder}/other.safetensors`;
  writeTensors(other, { w: { dtype: "U8", shape: [1_000_000] } });
  await cluster.mxctl(["load", other, "--model-name", "other"], b);
  const d = await cluster.startAgent("d");
  t.equal((await cluster.mxctl(["pull", "--model-name", "m"], d)).code, 0);
  await crashLoop(d, 5);
  const letCome = keepAway(d);
  t.teardown(letCome);
  const waiting = [
    cluster.mxctl(["pull", "--model-name", "other"], d),
    cluster.mxctl(["evict", "--model-name", "m"], d),
  ];
  await until("the pull", async () => (await d.client.status({})).holdings.length === 2);
  const started = performance.now();
  t.equal(await d.program.stop(), 0, "exit code 0");
  t.ok(performance.now() - started < 5000, "without waiting for them");
  for (const { code } of await Promise.all(waiting)) {
    t.equal(code, 4, "they are told that the agent went away");
  }
});

t.test(
  "a mover that dies over the check at the start: nothing is deleted for it, nothing unproved is served",
  async (t) => {
    const unchecked = `${cluster.folder}/unchecked.safetensors`;
    writeTensors(unchecked, { w: { dtype: "U8", shape: [5_000_000] } });
    const agent = await cluster.startAgent("checked");
    t.equal((await cluster.mxctl(["load", unchecked, "--model-name", "checked"], agent)).code, 0);
    await agent.program.stop();
    await clearFlags(agent.store);
    const [id] = readdirSync(`${agent.store}/holdings`);
    const before = contents(`${agent.store}/holdings/${id}`);
    const log = `${cluster.folder}/checked-steps`;
    const flags = ["--store", agent.store, "--socket", agent.socket];
    const again = await cluster.startAgent("checked", flags, {
      env: crashEnvironment({ log, role: "mover", step: "order check", nth: 0, victim: "mover" }),
    });
    const kills = readSteps(log).filter(({ fired }) => fired).length;
    t.equal(kills, 5, "so many movers were killed over the check");
    t.match(again.program.output(), /the mover ended again and again while it was checked/);
    t.match(again.program.output(), /"complete":0,"resumed":0,"evicted":0,"checkedBytes":0,"untouched":1/);
    t.same((await again.client.status({})).holdings, [], "it is not served");
    t.ok(Number((await again.client.status({})).memory?.used ?? 0n) >= 5_000_000, "its bytes count");
    await again.program.stop();
    t.same(contents(`${agent.store}/holdings/${id}`), before, "not a byte is another");
    const third = await cluster.startAgent("checked", flags);
    t.match(third.program.output(), /"complete":1,"resumed":0,"evicted":0/);
    await third.program.stop();
  },
);
