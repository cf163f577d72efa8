import { setImmediate as turnOfTheLoop } from "node:timers/promises";
import { createLoopRation } from "@weightline/runtime";
import t from "tap";
import { createTurns, type Turns } from "../src/local/turns.ts";

type Name = { key: string };
const [A, B, C] = [{ key: "a" }, { key: "b" }, { key: "c" }] as const;
const never = new AbortController().signal;
const wait = (turns: Turns<Name>, key: Name) => new Promise<void>((resolve) => turns.wait(key, never, resolve));

/** Turns on a clock that stands still unless it is set: nobody has taken anything of the loop. */
function standing() {
  const clock = { ms: 0 };
  const holds: string[] = [];
  const ration = createLoopRation(() => clock.ms);
  const onHold = ({ key }: Name, held: boolean) => void holds.push(`${key} ${held}`);
  return { clock, holds, turns: createTurns<Name>({ ration, onHold }) };
}

t.test("who asks once goes on before the many of another; all go on in the end, each in its own order", async (t) => {
  const { turns, holds } = standing();
  const order: string[] = [];
  const asked = [...Array.from({ length: 10 }, () => A), B, C, B].map((key, i) =>
    wait(turns, key).then(() => order.push(`${key.key}${i}`)),
  );
  t.same(holds, ["a true", "b true"], "of whom some wait");
  await Promise.all(asked);
  t.same(order.slice(0, 3), ["a0", "b10", "c11"], "the first of each at once");
  t.ok(order.indexOf("b12") <= 4, "the second of b with the second of a");
  t.same(
    order.filter((one) => one.startsWith("a")),
    Array.from({ length: 10 }, (_, i) => `a${i}`),
  );
  t.equal(order.length, 13);
  t.same(holds, ["a true", "b true", "b false", "a false"]);
  await wait(turns, A);
});

t.test("a newcomer waits for no more than one turn of a crowd", async (t) => {
  const { turns } = standing();
  let crowd = 0;
  const all = Array.from({ length: 100 }, () =>
    wait(turns, A).then(() => {
      crowd += 1;
    }),
  );
  await wait(turns, B);
  const before = crowd;
  await wait(turns, B);
  t.ok(crowd - before <= 2, `${crowd - before} of the crowd between two of another`);
  await Promise.all(all);
});

t.test("those that were left are passed over, however many", async (t) => {
  const { turns } = standing();
  const left = new AbortController();
  let went = 0;
  for (let i = 0; i < 100_000; i++) {
    turns.wait(A, left.signal, () => {
      went += 1;
    });
  }
  t.equal(went, 1, "the first at once");
  left.abort();
  let last = false;
  turns.wait(A, never, () => {
    last = true;
  });
  await turnOfTheLoop();
  await turnOfTheLoop();
  t.ok(last, "the one that stayed is next");
  t.equal(went, 1);
});

t.test("one who took more than its ration waits, while another is about; the other does not", async (t) => {
  const { turns, clock, holds } = standing();
  let went = 0;
  /** A call of A's that takes the loop for so long. */
  const take = (ms: number) =>
    turns.wait(A, never, () => {
      went += 1;
      clock.ms += ms;
    });
  await wait(turns, B);
  await turnOfTheLoop();
  take(140);
  await turnOfTheLoop();
  take(1);
  await wait(turns, B);
  await turnOfTheLoop();
  t.equal(went, 1, "its second waits");
  t.same(holds, ["a true"]);
  await wait(turns, B);
  clock.ms += 200;
  const late = setTimeout(() => t.fail("it waits for ever"), 10_000);
  while (went < 2) {
    await turnOfTheLoop();
  }
  clearTimeout(late);
  t.same(holds, ["a true", "a false"], "it goes on when three times as long has gone by");
});
