// Pods as crun starts them: own namespaces, a kubelet-shaped cgroup, no capability.
import { randomBytes, randomUUID } from "node:crypto";
import { chmodSync } from "node:fs";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCgroupTree } from "../../support/cgroup.ts";
import { createCluster } from "../../support/cluster.ts";
import { type ContainerOptions, startContainer } from "../../support/container.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const cluster = await createCluster();
const cgroups = createCgroupTree();
t.teardown(async () => {
  await cluster.stop();
  await cgroups.remove();
});
chmodSync(cluster.folder, 0o755);
const agent = await cluster.startAgent("a");
for (const name of ["m", "n"]) {
  const path = `${cluster.folder}/${name}.safetensors`;
  writeTensors(path, { [name]: { dtype: "U8", shape: [5_000_000], data: Buffer.alloc(5_000_000, 7) } });
  await cluster.load(agent, path, name);
}
const leases = async () => (await agent.client.status({})).leases;

function start(code: string, more: Partial<ContainerOptions> = {}) {
  const id = `weightline-${randomBytes(4).toString("hex")}`;
  return startContainer({
    folder: cluster.folder,
    id,
    cgroup: `${cgroups.top}/kubepods/burstable/pod${randomUUID()}/${id}`,
    sockets: dirname(agent.socket),
    command: [
      "python3",
      "-u",
      "-c",
      `import os, time, weightline\nfrom raw_client import *\npath = weightline.connect().path\n${code}`,
    ],
    ...more,
  });
}

t.test("a pod acquires, reads and releases; load, pull, evict and drain are refused", async (t) => {
  for (const uid of [0, 1000]) {
    const pod = start(
      `
held = weightline.connect().acquire(model_name="m")
say("pid", os.getpid(), "uid", os.getuid(), "byte", held["m"].data[4_999_999], "leases", ask(path, "Status", {})[1]["leases"])
held.release()
codes = []
for name, message in (("Load", {"path": "/etc/hostname", "modelName": "x"}), ("Pull", model("m")), ("Evict", {"wanted": {"model": {"modelName": "m"}}, "force": True}), ("Drain", {})):
    if name == "Pull": message.pop("timeoutS")
    body = ask(path, name, message)[1]
    codes.append(body.get("code") or body["error"]["code"])
say("refused", codes)
`,
      { uid },
    );
    const [, said] = await pod.program.waitFor(/(pid .*)/);
    t.equal(said, `pid 1 uid ${uid} byte 7 leases 1`, "in namespaces of its own");
    await pod.program.waitFor(
      /refused \['permission_denied', 'permission_denied', 'permission_denied', 'permission_denied'\]/,
    );
    t.equal(await pod.program.exited, 0);
  }
  t.equal(await leases(), 0);
  t.equal((await agent.client.status({})).holdings.length, 2);
});

t.test("the end of a container ends all its leases within a second", async (t) => {
  const pod = start(
    `
agent = weightline.connect()
one, two = agent.acquire(model_name="m"), agent.acquire(model_name="n")
if os.fork() == 0:
    three = agent.acquire(model_name="m")
    if os.fork() == 0:
        four = agent.acquire(model_name="m")
        say("held")
    time.sleep(100)
time.sleep(100)
`,
  );
  await pod.program.waitFor(/held/);
  t.equal(await leases(), 4, "two of its init, one of a child, one of a grandchild");
  const killed = performance.now();
  const dead = pod.kill();
  while ((await leases()) > 0 && performance.now() - killed < 10_000) {
    await sleep(5);
  }
  const tookMs = performance.now() - killed;
  t.equal(await leases(), 0);
  t.ok(tookMs < 1000, `${tookMs.toFixed(0)} ms with crun's own start`);
  await dead;
});

t.test("what a dead container had mapped can be evicted", async (t) => {
  const pod = start('held = weightline.connect().acquire(model_name="n")\nsay(held["n"].data[0])\ntime.sleep(100)');
  await pod.program.waitFor(/^7$/m);
  t.equal((await cluster.mxctl(["evict", "--model-name", "n"], agent)).code, 6);
  await pod.kill();
  const evicted = await cluster.mxctl(["evict", "--model-name", "n", "--output", "json"], agent);
  t.equal(evicted.code, 0, evicted.stderr);
  t.ok(JSON.parse(evicted.stdout).freed_bytes >= 5_000_000);
});
