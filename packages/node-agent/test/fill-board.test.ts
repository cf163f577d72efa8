// Who keeps a fill going, and who ends it.
import t from "tap";
import { createFillBoard } from "../src/fills/fill-board.ts";

/** Work that ends when it is told to, or is cancelled. */
function work() {
  const end = Promise.withResolvers<string>();
  let started = 0;
  return {
    end: end.resolve,
    started: () => started,
    run: (_report: unknown, signal: AbortSignal) => {
      started += 1;
      signal.addEventListener("abort", () => end.reject(new Error("cancelled")));
      return end.promise;
    },
  };
}

t.test("a fill that was joined ends when the last one leaves, and not before", async (t) => {
  const board = createFillBoard<string>();
  const only = work();
  const fill = board.start("k", only.run);
  const one = fill.join();
  const two = board.start("k", only.run).join();
  t.equal(only.started(), 1, "one work for both");
  one();
  one();
  t.equal(board.find("k"), fill, "leaving twice is leaving once");
  two();
  await t.rejects(fill.done, /cancelled/);
  t.equal(board.find("k"), undefined);
});

t.test("one that nobody joined, or that is done, is not cancelled", async (t) => {
  const board = createFillBoard<string>();
  const alone = work();
  const fill = board.start("a", alone.run);
  alone.end("fine");
  t.equal(await fill.done, "fine");
  const done = work();
  const joined = board.start("b", done.run);
  const leave = joined.join();
  done.end("fine");
  t.equal(await joined.done, "fine");
  leave();
  t.equal(await joined.done, "fine");
});

t.test("who comes while a cancelled one still ends gets a new one, begun after it", async (t) => {
  const board = createFillBoard<string>();
  const slow = Promise.withResolvers<string>();
  const order: string[] = [];
  const first = board.start("k", async () => {
    const result = await slow.promise;
    order.push("first ended");
    return result;
  });
  first.join()();
  const second = board.start("k", async () => {
    order.push("second began");
    return "new";
  });
  t.not(second, first);
  t.equal(board.find("k"), second);
  slow.resolve("old");
  t.equal(await second.done, "new");
  t.same(order, ["first ended", "second began"]);
  t.equal(board.find("k"), undefined);
});
