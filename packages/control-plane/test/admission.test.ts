import { setImmediate as turn } from "node:timers/promises";
import t from "tap";
import { createAdmission } from "../src/services/admission.ts";

t.test("so many run at once, the others follow in their order, and one that fails makes room too", async (t) => {
  const admitted = createAdmission(2);
  const started: number[] = [];
  const works = Array.from({ length: 6 }, () => Promise.withResolvers<number>());
  const all = works.map(({ promise }, i) =>
    admitted(() => {
      started.push(i);
      return promise;
    }).catch((error: Error) => error.message),
  );
  await turn();
  t.same(started, [0, 1]);
  works[1]?.reject(new Error("failed"));
  await turn();
  t.same(started, [0, 1, 2]);
  works[0]?.resolve(0);
  works[2]?.resolve(2);
  await turn();
  t.same(started, [0, 1, 2, 3, 4]);
  for (const [i, { resolve }] of works.entries()) {
    resolve(i);
  }
  t.same(await Promise.all(all), [0, "failed", 2, 3, 4, 5]);
  t.same(started, [0, 1, 2, 3, 4, 5]);
});

t.test("when all have ended there is room for as many as at first", async (t) => {
  const admitted = createAdmission(2);
  await Promise.all(Array.from({ length: 5 }, (_, i) => admitted(async () => i)));
  const started: number[] = [];
  for (let i = 0; i < 3; i++) {
    void admitted(() => {
      started.push(i);
      return new Promise(() => undefined);
    });
  }
  await turn();
  t.same(started, [0, 1]);
});

t.test("who comes while another's turn is handed over waits behind", async (t) => {
  const admitted = createAdmission(1);
  const order: string[] = [];
  const first = admitted(async () => order.push("first"));
  const second = admitted(async () => order.push("second"));
  await first;
  await Promise.all([second, admitted(async () => order.push("third"))]);
  t.same(order, ["first", "second", "third"]);
});
