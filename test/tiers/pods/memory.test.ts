// Whether evicted memory is free is asked of the tmpfs itself: one of this run's own.
import { mkdirSync, statfsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { pythonEnvironment, runCommand, startCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const BYTES = 20_000_000;
const cluster = await createCluster();
const store = `${cluster.folder}/tmpfs`;
mkdirSync(store);
await runCommand(["mount", "-t", "tmpfs", "-o", "size=64m", "none", store]);
t.teardown(async () => {
  await cluster.stop();
});
const agent = await cluster.startAgent("a", ["--store", store, "--memory-limit", "60000000"]);
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [BYTES], data: Buffer.alloc(BYTES, 7) } });

function usedBytes(): number {
  const { blocks, bfree, bsize } = statfsSync(store);
  return (blocks - bfree) * bsize;
}

async function until(what: () => boolean): Promise<boolean> {
  for (let i = 0; i < 200 && !what(); i++) {
    await sleep(20);
  }
  return what();
}

function mapper(code: string) {
  return startCommand(
    ["python3", "-u", "-c", `import os, sys, time, weightline\nagent = weightline.connect()\n${code}`],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
  );
}

t.test("the memory returns with the last mapping, not with the lease, and not before", async (t) => {
  const empty = usedBytes();
  await cluster.load(agent, path, "m");
  const full = usedBytes();
  t.ok(full - empty >= BYTES, "it is on this tmpfs");
  const first = mapper(
    'held = agent.acquire(model_name="m")\nt = held["w"].data\nheld.release()\nprint("mapped")\ntime.sleep(60)',
  );
  const second = mapper('held = agent.acquire(model_name="m")\nt = held["w"].data\nprint("mapped")\ntime.sleep(60)');
  await Promise.all([first.waitFor(/mapped/), second.waitFor(/mapped/)]);
  t.equal((await agent.client.status({})).leases, 1, "one has given its lease back and maps on");
  const forced = await cluster.mxctl(["evict", "--model-name", "m", "--force", "--output", "json"], agent);
  t.match(JSON.parse(forced.stdout), { freed_bytes: 0 });
  await sleep(1000);
  t.equal(usedBytes(), full, "two map it");
  second.kill("SIGKILL");
  await second.exited;
  t.ok(await until(() => true));
  await sleep(1000);
  t.equal((await agent.client.status({})).leases, 0, "the last lease has ended");
  t.equal(usedBytes(), full, "but one still maps it");
  const { memory } = await agent.client.status({});
  t.ok((memory?.used ?? 0n) >= BigInt(BYTES), "and it is counted");
  first.kill("SIGKILL");
  await first.exited;
  t.ok(await until(() => usedBytes() <= empty + 65_536), `${usedBytes()} of ${full} are left`);
  for (let i = 0; i < 100 && ((await agent.client.status({})).memory?.used ?? 0n) > 0n; i++) {
    await sleep(20);
  }
  t.equal((await agent.client.status({})).memory?.used, 0n);
});

t.test("a tmpfs that others fill: the error names it, before the first byte", async (t) => {
  const before = usedBytes();
  const other = `${store}/not-ours`;
  await runCommand(["dd", "if=/dev/zero", `of=${other}`, "bs=1M", "count=50"]);
  const refused = await cluster.mxctl(["load", path, "--model-name", "m"], agent);
  t.equal(refused.code, 1);
  t.match(refused.stderr, /the tmpfs itself has no more/);
  t.ok(usedBytes() - before < 52 * 2 ** 20 + 65_536);
  await runCommand(["rm", other]);
  await cluster.load(agent, path, "m");
});

t.teardown(async () => {
  await agent.program.stop();
  await runCommand(["umount", store]);
});
