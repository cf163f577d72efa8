// A list of what is active: members come and go, and those that went are not kept.
import { spawnSync } from "node:child_process";
import { ActiveList, type Listed } from "@weightline/runtime";
import t from "tap";

interface Member extends Listed {
  name: number;
}
const member = (name: number): Member => ({ slot: -1, name });

t.test("members come and go in any order", async (t) => {
  const list = new ActiveList<Member>();
  const all = Array.from({ length: 50 }, (_, i) => member(i));
  for (const one of all) {
    list.add(one);
  }
  t.equal(list.size, 50);
  for (const i of [49, 0, 7, 25, 48]) {
    t.ok(list.delete(all[i] as Member), `${i} was there`);
    t.notOk(list.has(all[i] as Member));
    t.notOk(list.delete(all[i] as Member), `${i} is not there twice`);
  }
  list.add(all[7] as Member);
  const seen = new Set<number>();
  list.forEach(({ name }) => {
    seen.add(name);
  });
  t.strictSame(
    [...seen].sort((a, b) => a - b),
    [...Array(50).keys()].filter((i) => ![49, 0, 25, 48].includes(i)),
  );
  t.equal(list.size, 46);
});

t.test("a visit may take out any member, and add one", async (t) => {
  const list = new ActiveList<Member>();
  const all = Array.from({ length: 6 }, (_, i) => member(i));
  for (const one of all) {
    list.add(one);
  }
  const seen: number[] = [];
  list.forEach((one) => {
    seen.push(one.name);
    list.delete(one);
    if (one.name === 1) {
      list.delete(all[4] as Member);
      list.add(member(6));
    }
  });
  t.strictSame(seen, [0, 1, 2, 3, 5], "each that was there from beginning to end, once");
  t.equal(list.size, 1);
});

t.test("a member of another list is not one of this", async (t) => {
  const list = new ActiveList<Member>();
  const other = new ActiveList<Member>();
  const one = member(1);
  list.add(one);
  t.notOk(other.has(one));
  t.notOk(other.delete(one));
  t.ok(list.has(one));
});

/** Calls that overlap, three at a time, in `active`; prints how many full collections they cost. */
const CHURN = (active: string) => `
import { PerformanceObserver, constants } from "node:perf_hooks";
import { setImmediate as turn } from "node:timers/promises";
import { ActiveList } from "@weightline/runtime";
let full = 0;
new PerformanceObserver((list) => {
  full += list.getEntries().filter(({ detail }) => detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR).length;
}).observe({ entryTypes: ["gc"] });
const active = ${active};
const running = [];
globalThis.gc();
for (let i = 0; i < 150_000; i++) {
  const call = { slot: -1, made: new Array(1000).fill(i) };
  active.add(call);
  running.push(call);
  if (running.length > 3) {
    active.delete(running.shift());
  }
  if (i % 20 === 0) {
    await turn();
  }
}
await turn();
console.log(full);
`;

function fullCollections(active: string): number {
  const flags = [
    "--expose-gc",
    "--single-threaded-gc",
    "--max-semi-space-size=8",
    "--disable-warning=ExperimentalWarning",
  ];
  const done = spawnSync(process.execPath, [...flags, "--input-type=module", "-e", CHURN(active)], {
    cwd: import.meta.dirname,
    encoding: "utf8",
  });
  if (done.status !== 0) {
    throw new Error(done.stderr);
  }
  return Number(done.stdout);
}

t.test("what went is not kept until the next full collection, as in a Set", async (t) => {
  const list = fullCollections("new ActiveList()");
  const set = fullCollections("new Set()");
  t.ok(set >= 4, `${set} full collections with a Set, which keeps what went`);
  t.ok(list <= set / 2, `${list} with the list`);
});
