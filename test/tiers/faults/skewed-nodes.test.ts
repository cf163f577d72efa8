// Field case 37: nodes whose clocks are ten minutes off, one behind and one ahead (libfaketime): both are ready, freshness counts from
// receipt, and each node says so once.
import { globSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { P2pService, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel, parseAddress } from "@weightline/runtime";
import t from "tap";
import { type Agent, createCluster } from "../../support/cluster.ts";
import { until } from "../../support/processes.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const [library] = globSync("/usr/lib/*/faketime/libfaketimeMT.so.1");
const SKEW_S = 600;
const ANNOUNCES = 5;

const cluster = await createCluster();
t.teardown(() => cluster.stop());

function clockOff(name: string, seconds: number): Record<string, string> {
  const file = `${cluster.folder}/${name}.clock`;
  writeFileSync(file, `${seconds < 0 ? "" : "+"}${seconds}\n`);
  return {
    LD_PRELOAD: library ?? "",
    FAKETIME_TIMESTAMP_FILE: file,
    FAKETIME_NO_CACHE: "1",
    FAKETIME_DONT_FAKE_MONOTONIC: "1",
  };
}

function warnings({ program }: Agent): Array<{ ahead_ms: number; time: number }> {
  return program
    .output()
    .split("\n")
    .filter((line) => line.includes('"event":"clock-skew"'))
    .map((line) => JSON.parse(line));
}

async function states(): Promise<Record<string, string>> {
  const { stdout } = await cluster.mxctl(["nodes", "--output", "json"]);
  const nodes = JSON.parse(stdout) as Array<{ name: string; state: string }>;
  return Object.fromEntries(nodes.map(({ name, state }) => [name, state]));
}

t.test("nodes ten minutes behind and ahead", { skip: library === undefined ? "no libfaketime" : false }, async (t) => {
  await cluster.startControlPlane();
  const behind = await cluster.startAgent("behind", [], { env: clockOff("behind", -SKEW_S) });
  const ahead = await cluster.startAgent("ahead", [], { env: clockOff("ahead", SKEW_S) });
  const right = await cluster.startAgent("right");

  const path = `${cluster.folder}/m.safetensors`;
  writeTensors(path, { w: { dtype: "U8", shape: [1_000_000] } });
  await cluster.load(behind, path, "m");
  t.equal((await cluster.mxctl(["pull", "--model-name", "m"], ahead)).code, 0, "one fills the other");

  const channel = createGrpcChannel({ addresses: [parseAddress(cluster.controlPlane(), "address")] });
  t.teardown(() => channel.close());
  const p2p = channel.client(P2pService);
  const published = await p2p.publishMetadata({
    identity: { modelName: "stock" },
    workerId: "stock",
    worker: { updatedAt: BigInt(Date.now() - SKEW_S * 1000) },
  });
  await p2p.updateStatus({ mxSourceId: published.mxSourceId, workerId: "stock", status: SourceStatus.READY });

  const all = { ahead: "ready", behind: "ready", right: "ready" };
  for (let i = 0; i < ANNOUNCES; i++) {
    await sleep(1000);
    t.same(await states(), all, `all are ready, look ${i}`);
  }
  const { instances } = await p2p.listSources({ statusFilter: SourceStatus.READY });
  t.same(
    instances.map(({ modelName }) => modelName).toSorted(),
    ["m", "m", "stock"],
    "what they hold and the stock worker are READY",
  );
  for (const { updatedAt } of instances) {
    t.ok(Math.abs(Number(updatedAt) - Date.now()) < 60_000, "times are of receipt");
  }

  for (const [agent, seconds] of [
    [behind, -SKEW_S],
    [ahead, SKEW_S],
  ] as const) {
    const [warning, ...more] = warnings(agent);
    t.ok(Math.abs((warning?.ahead_ms ?? 0) - seconds * 1000) < 5000, `${agent.name} is off by ${warning?.ahead_ms} ms`);
    t.ok(Math.abs((warning?.time ?? 0) - Date.now()) > (SKEW_S - 60) * 1000, "its log has its own clock");
    t.same(more, [], "told once");
  }
  t.same(warnings(right), []);

  // Ahead of everybody by its own clock, and lost all the same when it falls silent.
  ahead.program.kill("SIGSTOP");
  t.teardown(() => ahead.program.kill("SIGCONT"));
  await until("the silent one is lost", async () => (await states())["ahead"] === "lost");
  t.match(await states(), { behind: "ready", right: "ready" });
});
