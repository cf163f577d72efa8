// Work that never waits, a slice at a time.
import t from "tap";
import { mapInSlices } from "../src/store/in-slices.ts";

const busy = (ms: number) => {
  const end = performance.now() + ms;
  while (performance.now() < end) {
    // Works.
  }
};

t.test("results in the items' order, of functions that wait too; none for none", async (t) => {
  t.same(await mapInSlices([3, 1, 2], (n) => n * 2), [6, 2, 4]);
  t.same(await mapInSlices([3, 1], async (n) => n * 2), [6, 2]);
  t.same(await mapInSlices([], () => t.fail("called")), []);
});

t.test("others on the event loop go on in between", async (t) => {
  let turns = 0;
  const turn = () => {
    turns += 1;
    next = setImmediate(turn);
  };
  let next = setImmediate(turn);
  t.teardown(() => clearImmediate(next));
  const seen = await mapInSlices(
    Array.from({ length: 20 }, () => 6),
    (ms) => {
      busy(ms);
      return turns;
    },
  );
  t.ok((seen.at(-1) ?? 0) >= 15, `turns of others after each of 20 long items: ${seen}`);
});

t.test("what throws ends it", async (t) => {
  let calls = 0;
  await t.rejects(
    mapInSlices([1, 2, 3], () => {
      calls += 1;
      throw new Error("broken");
    }),
    /broken/,
  );
  t.equal(calls, 1);
});
