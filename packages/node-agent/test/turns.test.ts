import t from "tap";
import { createTurns } from "../src/local/turns.ts";

t.test("who asks once goes on before the many of another; all go on in the end, each in its own order", async (t) => {
  const turns = createTurns<string>();
  const order: string[] = [];
  const asked = [..."aaaaaaaaaa", "b", "c", "b"].map((key, i) => turns.wait(key).then(() => order.push(`${key}${i}`)));
  await Promise.all(asked);
  t.same(order.slice(0, 3), ["a0", "b10", "c11"], "the first of each at once");
  t.ok(order.indexOf("b12") <= 4, "the second of b with the second of a");
  t.same(
    order.filter((one) => one.startsWith("a")),
    Array.from({ length: 10 }, (_, i) => `a${i}`),
  );
  t.equal(order.length, 13);
  await turns.wait("a");
});

t.test("a newcomer waits for no more than one turn of a crowd", async (t) => {
  const turns = createTurns<string>();
  let crowd = 0;
  const all = Array.from({ length: 100 }, () => turns.wait("crowd").then(() => (crowd += 1)));
  await turns.wait("other");
  const before = crowd;
  await turns.wait("other");
  t.ok(crowd - before <= 2, `${crowd - before} of the crowd between two of another`);
  await Promise.all(all);
});
