// mxctl doctor against running programs, whole and broken.
import { chmodSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { NodeState } from "@weightline/proto/common";
import { AnnounceVerdict, NodeService } from "@weightline/proto/node";
import { PeerService } from "@weightline/proto/peer";
import { createGrpcServer, route } from "@weightline/runtime";
import t from "tap";
import { type Agent, createCluster, freePort } from "./support/cluster.ts";
import { mxctl } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

interface Check {
  name: string;
  level: string;
  evidence: string;
  cure: string;
}

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const controlPlane = await cluster.startControlPlane();
const nixl = `${cluster.folder}/nixl`;
mkdirSync(`${nixl}/lib`, { recursive: true });
writeFileSync(`${nixl}/lib/libnixl_capi.so`, "");
// As a container has it: 64 KiB, and without the capability that lifts the limit.
const withoutIpcLock = process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-ipc_lock"] : [];
const a = await cluster.startAgent("a", [], {
  wrapper: ["prlimit", "--memlock=65536", ...withoutIpcLock],
  env: { NIXL_PREFIX: nixl },
});
const b = await cluster.startAgent("b");
const model = `${cluster.folder}/m.safetensors`;
writeTensors(model, { w: { dtype: "U8", shape: [3_000_000] } });
const loaded = await cluster.mxctl(["load", model, "--model-name", "m"], a);
const pulled = await cluster.mxctl(["pull", "--model-name", "m"], b);

/** Checks by name, with the exit code. */
async function examine(agent: Agent): Promise<{ code: number | null; stderr: string; checks: Map<string, Check> }> {
  const { code, stdout, stderr } = await cluster.mxctl(["doctor", "-o", "json"], agent);
  return { code, stderr, checks: new Map((JSON.parse(stdout) as Check[]).map((check) => [check.name, check])) };
}

t.test("a node that works: every check, no error, exit 0", async (t) => {
  t.equal(loaded.code, 0, loaded.stderr);
  t.equal(pulled.code, 0, pulled.stderr);
  const { code, stderr, checks } = await examine(b);
  t.equal(code, 0, stderr);
  for (const name of [
    "agent",
    "kernel",
    "callers",
    "cgroups",
    "immutable-flag",
    "protection",
    "processes",
    "nixl",
    "memlock-agent",
    "memlock-mover",
    "open-files-agent",
    "open-files-mover",
    "memory",
    "store-size",
    "ram",
    "cgroup-memory",
    "socket",
    "descriptor-socket",
    "socket-folder",
    "mover",
    "holdings",
    "damage",
    "foreign-files",
    "newer-holdings",
    "control-plane",
    "peers",
    "peers-data",
    "clock-skew",
    "clock-jumps",
    "security",
    "endpoint",
    "versions",
  ]) {
    t.match(checks.get(name)?.level, /^(ok|note|warning)$/, name);
  }
  for (const name of [
    "agent",
    "socket",
    "descriptor-socket",
    "mover",
    "peers",
    "peers-data",
    "clock-skew",
    "versions",
  ]) {
    t.match(checks.get(name), { level: "ok" }, name);
  }
  t.match(checks.get("holdings")?.evidence, /1 complete/);
  t.match(checks.get("security"), { level: "warning", evidence: /security is off/ });
  const table = await cluster.mxctl(["doctor"], b);
  t.match(table.stdout, /^ok +agent +node b answers/m);
  t.match(table.stdout, /^warning +security +security is off.*\n +-> keep the agents' ports inside the cluster/m);
});

t.test("44: ulimit -l 64 and a NIXL: the limit is named, stream is used and is the slower path", async (t) => {
  const { checks } = await examine(a);
  for (const who of ["agent", "mover"]) {
    t.match(checks.get(`memlock-${who}`), {
      level: "warning",
      evidence: /64\.0 KiB.*the stream transport is used, which is the slower path/,
    });
  }
  t.match(checks.get("nixl")?.evidence, `${nixl}/lib/libnixl_capi.so`);
});

t.test("what was put into the store, a mover that was killed, a node that is gone: each by name", async (t) => {
  writeFileSync(`${a.store}/stray`, "");
  mkdirSync(`${a.store}/holdings/${"f".repeat(32)}`);
  writeFileSync(
    `${a.store}/holdings/${"f".repeat(32)}/record.json`,
    JSON.stringify({ format: 99, min_reader: 99, identities: [] }),
  );
  const mover = /process (\d+)/.exec((await examine(a)).checks.get("mover")?.evidence ?? "")?.[1];
  process.kill(Number(mover), "SIGKILL");
  for (let i = 0; i < 500 && (await a.client.status({})).moverRestarts === 0n; i++) {
    await sleep(10);
  }
  b.program.kill("SIGSTOP");
  const { code, stderr, checks } = await examine(a);
  b.program.kill("SIGCONT");
  t.match(checks.get("foreign-files"), { level: "note", evidence: /stray/ });
  t.match(checks.get("newer-holdings"), { level: "note", evidence: /f{32}/ });
  t.match(checks.get("mover"), { evidence: /started again 1 time/ });
  t.not(checks.get("mover")?.level, "ok");
  t.match(checks.get("peers"), { level: "error", evidence: new RegExp(`b at ${b.address}`) });
  t.equal(code, 1);
  t.match(stderr, /check\(s\) failed: .*peers/);
});

t.test(
  "42, 37: a peer whose data port is closed though its agent answers; a control plane whose clock is off",
  async (t) => {
    const closed = await freePort();
    let asked = 0;
    // A control plane of the test's own: ten minutes behind, and it names this server as a node.
    const server = await createGrpcServer({
      bind: ["127.0.0.1"],
      port: 0,
      portFlag: "--port",
      routes: [
        route(NodeService, {
          announce: () => ({ verdict: AnnounceVerdict.ACCEPTED, nextAnnounceMs: 1000 }),
          leave: () => ({}),
          listNodes: () => ({
            nodes: [
              { name: "half", state: NodeState.READY, address: `127.0.0.1:${server.port}` },
              { name: "gone", state: NodeState.LOST, address: "127.0.0.1:1" },
              { name: "d", state: NodeState.READY, address: "127.0.0.1:1" },
            ],
            nowMs: BigInt(Date.now() - 600_000),
          }),
        }),
        route(PeerService, {
          find() {
            asked += 1;
            return { node: "half", endpoints: [{ transport: "stream", address: `127.0.0.1:${closed}` }] };
          },
        }),
      ],
    });
    t.teardown(() => server.stop(0));
    const d = await cluster.startAgent("d", ["--control-plane", `127.0.0.1:${server.port}`]);
    const { code, checks } = await examine(d);
    t.equal(asked, 1, "its agent was asked");
    t.match(checks.get("peers"), { level: "ok", evidence: /all of 1 other nodes/ }, "neither itself nor a lost one");
    t.match(checks.get("peers-data"), {
      level: "error",
      evidence: new RegExp(`half at 127.0.0.1:${closed} \\(ECONNREFUSED\\)`),
    });
    t.match(checks.get("clock-skew"), { level: "warning", evidence: /10m ahead of the control plane's/ });
    t.equal(code, 1);
    await d.program.stop();
  },
);

t.test("a caller who is no operator gets a note, not the node's details", async (t) => {
  // The run's folder is its maker's alone.
  chmodSync(cluster.folder, 0o755);
  const done = await mxctl(["--endpoint", cluster.controlPlane(), "--socket", a.socket, "doctor", "-o", "json"], {
    wrapper: ["setpriv", "--reuid=65534", "--clear-groups"],
  });
  if (done.stdout === "") {
    t.pass(`another user cannot run it here: ${done.stderr}`);
    return;
  }
  const checks: Check[] = JSON.parse(done.stdout);
  t.match(checks[0], { name: "agent", level: "note", evidence: /uid 65534 may not call doctor/ });
  t.equal(checks.length, 3);
});

t.test("without an agent: said so, the rest is examined; without anybody: exit 4", async (t) => {
  const socket = `${cluster.folder}/none.sock`;
  const alone = await mxctl(["--endpoint", cluster.controlPlane(), "--socket", socket, "doctor", "-o", "json"]);
  t.equal(alone.code, 1);
  t.match(JSON.parse(alone.stdout), [
    {
      name: "agent",
      level: "error",
      evidence: /cannot be reached: no agent at .*none.sock: there is no socket/,
      cure: /start the agent/,
    },
    { name: "endpoint", level: "ok" },
    { name: "versions", level: "ok" },
  ]);
  await controlPlane.stop();
  const { code, checks } = await examine(a);
  t.equal(code, 1);
  t.match(checks.get("control-plane"), { level: "error" });
  t.match(checks.get("endpoint"), { level: "error", cure: /start it/ });
  t.match(checks.get("clock-skew"), { level: "note" });
  const nobody = await mxctl(["--endpoint", cluster.controlPlane(), "--socket", socket, "doctor", "-o", "yaml"]);
  t.equal(nobody.code, 4);
  t.match(nobody.stdout, /^- name: agent\n {2}level: error/);
  t.match(nobody.stderr, /nothing could be checked/);
  rmSync(`${a.store}/holdings/${"f".repeat(32)}`, { recursive: true });
});
