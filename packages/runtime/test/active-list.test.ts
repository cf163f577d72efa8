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

/** Calls that overlap, three at a time, in `active`, and collections of young objects alone; prints the bytes that stay. */
const CHURN = (active: string) => `
import { ActiveList } from "@weightline/runtime";
const active = ${active};
globalThis.gc();
const before = process.memoryUsage().heapUsed;
const running = [];
for (let i = 0; i < 4000; i++) {
  const call = { slot: -1, made: new Array(1000).fill(i) };
  active.add(call);
  running.push(call);
  if (running.length > 3) {
    active.delete(running.shift());
  }
  if (i % 20 === 0) {
    globalThis.gc({ type: "minor" });
  }
}
globalThis.gc({ type: "minor" });
console.log(process.memoryUsage().heapUsed - before);
`;

function keptBytes(active: string): number {
  // So much memory at the start that no full collection comes by itself.
  const flags = ["--expose-gc", "--single-threaded-gc", "--initial-old-space-size=512"];
  const done = spawnSync(
    process.execPath,
    [...flags, "--disable-warning=ExperimentalWarning", "--input-type=module", "-e", CHURN(active)],
    { cwd: import.meta.dirname, encoding: "utf8" },
  );
  if (done.status !== 0) {
    throw new Error(done.stderr);
  }
  return Number(done.stdout);
}

t.test("what went is not kept until the next full collection, as in a Set", async (t) => {
  const made = 4000 * 8000;
  const set = keptBytes("new Set()");
  const list = keptBytes("new ActiveList()");
  t.ok(set > made / 4, `${set} of ${made} bytes stay with a Set`);
  t.ok(list < made / 20, `${list} with the list`);
});
