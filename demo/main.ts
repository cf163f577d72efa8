// The main job on one machine: real weights move between three nodes' agents, verified, and stay. Exit 0 only when all of it held.
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, resolve } from "node:path";
import { HoldingState } from "@weightline/proto/common";
import { formatByteSize } from "@weightline/runtime";
import { type Agent, type Cluster, createCluster } from "../test/support/cluster.ts";
import { pythonEnvironment, ROOT, runCommand } from "../test/support/program.ts";

const MODEL = "demo";
const FLIPPED_BIT = 0x01;

class DemoFailure extends Error {}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

function step(number: number, title: string): void {
  say(`\n${number}. ${title}`);
}

/** States what must hold; the demo ends when it does not. */
function prove(holds: boolean, what: string): void {
  if (!holds) {
    throw new DemoFailure(`not true: ${what}`);
  }
  say(`   proved: ${what}`);
}

interface Comparison {
  tensors: number;
  bytes: number;
  copied: number;
  outcome: string;
  digest: string;
}

/** Acquires in a Python process and compares every tensor with the file on disk. */
async function compare(agent: Agent, path: string): Promise<Comparison> {
  const done = await runCommand(["python3", `${ROOT}demo/compare_weights.py`, MODEL, path], {
    env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }),
    timeoutMs: 300_000,
  });
  if (done.code !== 0) {
    throw new DemoFailure(`the comparison on ${agent.name} failed: ${done.stderr.trim()}`);
  }
  return JSON.parse(done.stdout);
}

async function show(cluster: Cluster, parameters: readonly string[], agent?: Agent): Promise<void> {
  const done = await cluster.mxctl(parameters, agent);
  say(`   $ mxctl ${parameters.join(" ")}`);
  for (const line of done.stdout.trimEnd().split("\n")) {
    say(`     ${line}`);
  }
  if (done.code !== 0) {
    throw new DemoFailure(`mxctl ${parameters.join(" ")}: ${done.stderr.trim()}`);
  }
}

function received(agent: Agent): Promise<number> {
  return agent.metric("weightline_transfer_bytes_total", 'direction="in"');
}

/** Bytes that each node has sent. */
async function sent(agents: readonly Agent[]): Promise<number[]> {
  return Promise.all(agents.map((agent) => agent.metric("weightline_transfer_bytes_total", 'direction="out"')));
}

/** Flips one bit in the largest segment of a node's holding, its immutable flag cleared first. Gives file and offset. */
async function damage(agent: Agent): Promise<{ file: string; offset: number }> {
  const { holdings } = await agent.client.status({});
  const holding = holdings.find(({ state }) => state === HoldingState.COMPLETE);
  const folder = `${agent.store}/holdings/${holding?.holdingId}/files`;
  const names = await readdir(folder, { recursive: true });
  const files = (
    await Promise.all(
      names.map(async (name) => ({ path: `${folder}/${name}`, status: await stat(`${folder}/${name}`) })),
    )
  ).filter(({ status }) => status.isFile());
  const largest = files.sort((a, b) => b.status.size - a.status.size)[0];
  if (largest === undefined) {
    throw new DemoFailure(`node ${agent.name} has no files`);
  }
  await runCommand(["chattr", "-i", largest.path]);
  const offset = Math.floor(largest.status.size / 2);
  const descriptor = openSync(largest.path, "r+");
  const byte = Buffer.alloc(1);
  readSync(descriptor, byte, 0, 1, offset);
  writeSync(descriptor, Buffer.from([(byte[0] ?? 0) ^ FLIPPED_BIT]), 0, 1, offset);
  closeSync(descriptor);
  return { file: basename(largest.path), offset };
}

async function waitUntil(what: string, test: () => Promise<boolean>): Promise<void> {
  for (const deadline = performance.now() + 15_000; performance.now() < deadline; ) {
    if (await test()) {
      return;
    }
    await new Promise((done) => setTimeout(done, 100));
  }
  throw new DemoFailure(`did not come true within 15 s: ${what}`);
}

async function holders(cluster: Cluster): Promise<number> {
  const done = await cluster.mxctl(["nodes", "--output", "json"]);
  const nodes: Array<{ holdings: Array<{ model_name: string; state: string }> }> = JSON.parse(done.stdout);
  return nodes.filter(({ holdings }) =>
    holdings.some(({ model_name, state }) => model_name === MODEL && state === "complete"),
  ).length;
}

async function run(cluster: Cluster, path: string): Promise<void> {
  step(1, "A control plane and three nodes' agents, each with its own store, socket and ports");
  await cluster.startControlPlane();
  const one = await cluster.startAgent("node-1");
  let two = await cluster.startAgent("node-2");
  const three = await cluster.startAgent("node-3");
  say(`   control plane ${cluster.controlPlane()}; agents ${one.address}, ${two.address}, ${three.address}`);

  step(2, `node-1 loads ${basename(path)} from disk`);
  await show(cluster, ["load", path, "--model-name", MODEL], one);

  step(3, "A Python process on node-2 acquires it: node-2 receives it from node-1, every chunk verified");
  const second = await compare(two, path);
  prove(
    second.outcome === "received",
    `node-2 received it: ${formatByteSize(await received(two))} came over the network`,
  );
  prove(
    second.copied === 0,
    `${second.tensors} tensors, ${formatByteSize(second.bytes)}, equal to the file on disk byte by byte, attached without a copy`,
  );

  step(4, "The same on node-3, which finds two holders");
  await waitUntil("two nodes hold it", async () => (await holders(cluster)) === 2);
  const third = await compare(three, path);
  prove(third.outcome === "received" && third.digest === second.digest, "node-3 received the same object");

  step(5, "What operators see");
  await waitUntil("three nodes hold it", async () => (await holders(cluster)) === 3);
  await show(cluster, ["nodes"]);
  await show(cluster, ["transfers"]);

  step(6, "kill -9 the agent of node-2, start it again, attach again");
  two.program.kill("SIGKILL");
  await two.program.exited;
  const killedAt = performance.now();
  two = await cluster.startAgent("node-2", ["--store", two.store, "--socket", two.socket]);
  const again = await compare(two, path);
  prove(
    again.outcome === "held" && again.digest === second.digest,
    `node-2 still holds it, ${((performance.now() - killedAt) / 1000).toFixed(1)} s after the kill, the comparison included`,
  );
  prove((await received(two)) === 0, "0 bytes moved over the network");

  step(7, "Evict node-3's copy, flip one bit in the copy that node-3 will read first, acquire again on node-3");
  await show(cluster, ["evict", "--model-name", MODEL], three);
  const before = await sent([one, two]);
  const { file, offset } = await damage(one);
  say(`   flipped a bit of node-1's ${file} at offset ${offset}`);
  const last = await compare(three, path);
  const refused = await three.metric("weightline_chunks_total", 'result="refused"');
  prove(refused >= 1, `node-3 refused ${refused} chunk that did not have its digest, and left node-1`);
  const after = await sent([one, two]);
  await waitUntil("node-2 sent the rest", async () => ((await sent([one, two]))[1] ?? 0) > (before[1] ?? 0));
  prove(
    last.digest === second.digest,
    `node-3 finished from node-2 with the right bytes (node-1 had sent ${formatByteSize((after[0] ?? 0) - (before[0] ?? 0))} of good chunks before)`,
  );
  await waitUntil(
    "node-1 knows that its copy is damaged and fills it again",
    async () => (await one.metric("weightline_chunks_total", 'result="verified"')) >= 1,
  );
  const repaired = await compare(one, path);
  prove(
    repaired.digest === second.digest,
    "node-1 found its copy damaged and filled the wrong chunk again from another node",
  );
  await show(cluster, ["transfers"]);
}

function usage(): never {
  process.stderr.write(
    "usage: ./mx demo [--model PATH]   PATH: a safetensors file or a model folder (default: all-MiniLM-L6-v2, 90.9 MB)\n",
  );
  process.exit(2);
}

function modelPath(argv: readonly string[]): string {
  const [flag, value, ...rest] = argv;
  if (flag === undefined) {
    return `${process.env["XDG_CACHE_HOME"] ?? `${homedir()}/.cache`}/weightline/all-MiniLM-L6-v2`;
  }
  const path = flag.startsWith("--model=") ? flag.slice("--model=".length) : flag === "--model" ? value : undefined;
  if (path === undefined || rest.length > 0) {
    usage();
  }
  return resolve(path);
}

const path = modelPath(process.argv.slice(2));
const cluster = await createCluster();
const stop = async (code: number) => {
  await cluster.stop();
  process.exit(code);
};
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => void stop(130));
}
const startedAt = performance.now();
try {
  await run(cluster, path);
  say(`\nAll of it held, in ${((performance.now() - startedAt) / 1000).toFixed(1)} s.`);
  await stop(0);
} catch (error) {
  process.stderr.write(`\ndemo: ${(error as Error).message}\n`);
  await stop(1);
}
