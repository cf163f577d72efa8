import { setImmediate as turnOfTheLoop } from "node:timers/promises";
import t from "tap";
import { createLoopRation } from "../src/loop-ration.ts";

const [A, B] = ["a", "b"] as const;

/** A ration on a clock of its own: `turn` does something for keys in one turn of the loop, which takes so long. */
function rationed() {
  const clock = { ms: 1000 };
  const ration = createLoopRation(() => clock.ms);
  const turn = async (ms: number, ...keys: string[]) => {
    for (const key of keys) {
      ration.spend(key);
    }
    clock.ms += ms;
    await turnOfTheLoop();
  };
  return { clock, ration, turn };
}

t.test("one who is alone takes all; beside another it waits three times what it took, beyond a credit", async (t) => {
  const { clock, ration, turn } = rationed();
  t.equal(ration.waitMs(A), 0, "of whom nothing is known");
  await turn(60, A);
  await turn(60, A);
  t.equal(ration.waitMs(A), 0, "alone");
  await turn(0, B);
  t.equal(ration.waitMs(B), 0, "who took nothing");
  t.equal(ration.waitMs(A), 20, "100 - 60 + 60 / 4 - 60 = -5, which is made up for by a quarter of the time");
  clock.ms += ration.waitMs(A);
  t.equal(ration.waitMs(A), 0);
  await turn(1, A);
  t.equal(ration.waitMs(A), 3, "three times as long");
});

t.test("a turn's time is shared by those for whom something was done, in proportion", async (t) => {
  const { ration, turn } = rationed();
  await turn(0, A, B);
  await turn(128, A, A, A, B);
  t.equal(ration.waitMs(A), 0, "96 are A's: 4 are left");
  await turn(16, A, B);
  t.equal(ration.waitMs(A), 0, "4 + 16 / 4 - 8 = 0");
  await turn(8, A);
  t.equal(ration.waitMs(A), 24, "three times as long");
  t.equal(ration.waitMs(B), 0);
});

t.test("debts are forgotten: above a bound, and when nobody else has been about for a second", async (t) => {
  const { clock, ration, turn } = rationed();
  await turn(10_000, A);
  await turn(0, B);
  t.equal(ration.waitMs(A), 200);
  clock.ms += 100;
  t.equal(ration.waitMs(A), 100);
  await turn(0, A);
  await turn(10_000, A);
  t.equal(ration.waitMs(A), 0, "alone again");
});

t.test("many who come and go: who owes something still owes it", async (t) => {
  const { clock, ration, turn } = rationed();
  await turn(200, A);
  for (let i = 0; i < 20_000; i++) {
    ration.spend(`one of many ${i}`);
    if (i % 100 === 0) {
      await turn(0.01);
    }
  }
  t.ok(ration.waitMs(A) > 190, `${ration.waitMs(A)}`);
  clock.ms += 200;
  t.equal(ration.waitMs(A), 0);
});
