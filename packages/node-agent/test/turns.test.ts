import { setImmediate as turnOfTheLoop } from "node:timers/promises";
import t from "tap";
import { createTurns, type Turns } from "../src/local/turns.ts";

const never = new AbortController().signal;
const wait = (turns: Turns<string>, key: string) => new Promise<void>((resolve) => turns.wait(key, never, resolve));

t.test("who asks once goes on before the many of another; all go on in the end, each in its own order", async (t) => {
  const turns = createTurns<string>();
  const order: string[] = [];
  const asked = [..."aaaaaaaaaa", "b", "c", "b"].map((key, i) => wait(turns, key).then(() => order.push(`${key}${i}`)));
  await Promise.all(asked);
  t.same(order.slice(0, 3), ["a0", "b10", "c11"], "the first of each at once");
  t.ok(order.indexOf("b12") <= 4, "the second of b with the second of a");
  t.same(
    order.filter((one) => one.startsWith("a")),
    Array.from({ length: 10 }, (_, i) => `a${i}`),
  );
  t.equal(order.length, 13);
  await wait(turns, "a");
});

t.test("a newcomer waits for no more than one turn of a crowd", async (t) => {
  const turns = createTurns<string>();
  let crowd = 0;
  const all = Array.from({ length: 100 }, () =>
    wait(turns, "crowd").then(() => {
      crowd += 1;
    }),
  );
  await wait(turns, "other");
  const before = crowd;
  await wait(turns, "other");
  t.ok(crowd - before <= 2, `${crowd - before} of the crowd between two of another`);
  await Promise.all(all);
});

t.test("those that were left are passed over, however many", async (t) => {
  const turns = createTurns<string>();
  const left = new AbortController();
  let went = 0;
  for (let i = 0; i < 100_000; i++) {
    turns.wait("crowd", left.signal, () => {
      went += 1;
    });
  }
  t.equal(went, 1, "the first at once");
  left.abort();
  let last = false;
  turns.wait("crowd", never, () => {
    last = true;
  });
  await turnOfTheLoop();
  await turnOfTheLoop();
  t.ok(last, "the one that stayed is next");
  t.equal(went, 1);
});
