// Leases of real processes: their caps, and how they end.
import { type ChildProcess, spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { native } from "@weightline/rdma-native";
import type { BoundedLog } from "@weightline/runtime";
import t, { type Test } from "tap";
import type { Holding } from "../src/holdings/holding.ts";
import type { HoldingRegistry } from "../src/holdings/holding-registry.ts";
import { createLeaseTable } from "../src/leases/lease-table.ts";
import { POD_LEASE_PROCESSES_MAX, POD_LEASES_MAX, TIMED_LEASES_MAX } from "../src/local/limits.ts";

const holding = (state = "complete"): Holding =>
  ({ id: "h", record: { state }, leases: 0, lastUsedAt: 0, readers: 0 }) as unknown as Holding;
const registry = { changed: () => undefined } as unknown as HoldingRegistry;
const silent: BoundedLog = () => undefined;

function child(t: Test): ChildProcess & { pid: number } {
  const process = spawn("sleep", ["60"], { stdio: "ignore" });
  t.teardown(() => process.kill("SIGKILL"));
  return process as ChildProcess & { pid: number };
}

async function eventually(holds: () => boolean): Promise<boolean> {
  for (let i = 0; i < 500 && !holds(); i++) {
    await sleep(10);
  }
  return holds();
}

t.test("leases of a pod: up to the cap, of all its processes together", async (t) => {
  const table = createLeaseTable(registry, silent);
  const one = holding();
  const [a, b] = [child(t), child(t)].map(({ pid }) => table.enter(native.openProcess(pid)));
  if (a === undefined || b === undefined) {
    throw new Error("no process");
  }
  const ids = Array.from({ length: POD_LEASES_MAX - 1 }, (_, i) => table.grant(one, i % 2 === 0 ? a : b, "pod x").id);
  table.grant(one, a, "pod x");
  t.throws(() => table.grant(one, b, "pod x"), {
    code: "ResourceExhausted",
    field: "leases",
    value: String(POD_LEASES_MAX),
    limit: String(POD_LEASES_MAX),
    wayOut: /release/,
  });
  t.equal(one.leases, POD_LEASES_MAX, "a refused one counts nowhere");
  t.ok(table.grant(one, b, "pod y"), "another pod's are counted apart");
  table.release(ids[0] ?? "", a);
  t.ok(table.grant(one, b, "pod x"), "one that was given back is free again");
  table.close();
  t.equal(one.leases, 0);
  t.equal(table.count(), 0);
  table.leave(a);
  table.leave(b);
});

t.test("processes of a pod with leases: up to the cap", async (t) => {
  const table = createLeaseTable(registry, silent);
  const one = holding();
  const owners = Array.from({ length: POD_LEASE_PROCESSES_MAX + 1 }, () =>
    table.enter(native.openProcess(child(t).pid)),
  );
  const last = owners.at(-1);
  const first = owners[0];
  if (last === undefined || first === undefined) {
    throw new Error("no process");
  }
  const ids = owners.slice(0, -1).map((owner) => table.grant(one, owner, "pod x").id);
  t.throws(() => table.grant(one, last, "pod x"), {
    code: "ResourceExhausted",
    field: "processes",
    limit: String(POD_LEASE_PROCESSES_MAX),
    wayOut: /./,
  });
  t.ok(table.grant(one, first, "pod x"), "one that has a lease may have more");
  table.release(ids[1] ?? "", owners[1]);
  t.ok(table.grant(one, last, "pod x"), "the place of one that has none left");
  table.close();
});

t.test("one owner for all connections of a process; its end ends all its leases, and late ones too", async (t) => {
  const ended: unknown[] = [];
  const table = createLeaseTable(registry, (_level, facts) => void ended.push(facts));
  const one = holding();
  const process = child(t);
  const first = table.enter(native.openProcess(process.pid));
  const second = table.enter(native.openProcess(process.pid));
  t.equal(first, second);
  for (let i = 0; i < 5; i++) {
    table.grant(one, first, "pod x");
  }
  process.kill("SIGKILL");
  t.ok(await eventually(() => one.leases === 0));
  t.same(ended, [{ event: "leases-ended", process: process.pid, leases: 5 }]);
  // A call that was under way when its process ended.
  table.grant(one, first, "pod x");
  t.ok(await eventually(() => one.leases === 0), "it is told at once");
  table.leave(first);
  t.ok(native.processAlive(first.peer.process) === false, "the other connection keeps it");
  table.leave(second);
  t.throws(() => native.processAlive(first.peer.process), { code: "Closed" });
});

t.test("a number that was given to another process is another owner", async (t) => {
  const table = createLeaseTable(registry, silent);
  const one = holding();
  const [old, young] = [child(t), child(t)];
  const owner = table.enter(native.openProcess(old.pid));
  const { id } = table.grant(one, owner, "pod x");
  const reused = { ...native.openProcess(young.pid), pid: old.pid };
  const exited = new Promise((resolve) => old.once("exit", resolve));
  old.kill("SIGKILL");
  await exited;
  const other = table.enter(reused);
  t.not(other, owner);
  // Whether the watch has told already or not: not the newcomer's.
  const released = (() => {
    try {
      return table.release(id, other);
    } catch (error) {
      return (error as { code: string }).code;
    }
  })();
  t.ok(released === false || released === "PermissionDenied");
  t.ok(await eventually(() => one.leases === 0));
});

t.test("leases of peers' reads have a limit together, and an ended one makes room", async (t) => {
  const table = createLeaseTable(registry, silent);
  const one = holding();
  const all = Array.from({ length: TIMED_LEASES_MAX }, () => table.grantTimed(one, 60_000));
  t.throws(() => table.grantTimed(one, 60_000), {
    code: "ResourceExhausted",
    value: String(TIMED_LEASES_MAX),
    limit: String(TIMED_LEASES_MAX),
  });
  t.ok(table.release(all[0]?.id ?? "", undefined));
  t.ok(table.grantTimed(one, 60_000));
});

t.test("only complete holdings are leased; a timed lease is nobody's to give back locally", async (t) => {
  const table = createLeaseTable(registry, silent);
  const owner = table.enter(native.openProcess(child(t).pid));
  for (const state of ["filling", "damaged", "evicting"]) {
    t.throws(() => table.grant(holding(state), owner, "g"), { code: "Unavailable" }, state);
  }
  const one = holding();
  const timed = table.grantTimed(one, 60_000);
  t.throws(() => table.release(timed.id, owner), { code: "PermissionDenied" });
  t.ok(table.release(timed.id, undefined));
  table.grantTimed(one, 20);
  t.ok(await eventually(() => one.leases === 0), "it ends by itself");
  table.leave(owner);
});
