// The pure decisions: which object, which holder, which role, whose fault, how much.
import { create } from "@bufbuild/protobuf";
import { HoldingSchema, HoldingState } from "@weightline/proto/common";
import t from "tap";
import { type Candidate, chooseObject, matches, objectKey, targetOf } from "../src/fills/candidates.ts";
import { createFillBoard } from "../src/fills/fill-board.ts";
import { chargeOf } from "../src/holdings/holding.ts";
import { memoryLimit } from "../src/memory-limit.ts";
import { moverEndpoint } from "../src/peers/peer-service.ts";
import { createLinkRate, linkRate } from "../src/transfers/link-rate.ts";
import { blameOf } from "../src/transfers/transfer-log.ts";

function candidate(
  node: string,
  object: string,
  state: HoldingState = HoldingState.COMPLETE,
  verified = 100,
): Candidate {
  const complete = state === HoldingState.COMPLETE;
  return {
    node,
    address: "h:1",
    epoch: 1n,
    holding: create(HoldingSchema, {
      holdingId: node.repeat(32).slice(0, 32),
      state,
      objectDigest: complete ? Buffer.from(object.repeat(64).slice(0, 64), "hex") : new Uint8Array(),
      originHoldingId: object.repeat(32).slice(0, 32),
      layoutDigest: Buffer.from("aa", "hex"),
      verifiedBytes: BigInt(verified),
    }),
  };
}

t.test(
  "which object: most complete holders, then the lower digest; which holder: complete, fuller, by name",
  async (t) => {
    const nodes = (candidates: Candidate[]) => chooseObject(candidates).map(({ node }) => node);
    t.same(nodes([candidate("x", "b"), candidate("y", "a")]), ["y"], "a tie: the lower digest");
    t.same(nodes([candidate("x", "b"), candidate("y", "a"), candidate("w", "b")]), ["w", "x"]);
    t.same(nodes([candidate("x", "b"), candidate("y", "c", HoldingState.FILLING)]), ["x"]);
    t.same(nodes([candidate("x", "c", HoldingState.FILLING, 1), candidate("y", "c", HoldingState.FILLING, 9)]), [
      "y",
      "x",
    ]);
    t.same(nodes([candidate("x", "b", HoldingState.DAMAGED), candidate("y", "b", HoldingState.EVICTING)]), []);
    t.same(nodes([]), []);
  },
);

t.test("what was begun goes on with the same object only", async (t) => {
  const target = targetOf(candidate("x", "a").holding);
  t.ok(matches(candidate("y", "a"), target));
  t.notOk(matches(candidate("y", "b"), target), "the same layout, other bytes");
  const filling = targetOf(candidate("x", "a", HoldingState.FILLING).holding);
  t.ok(matches(candidate("y", "a", HoldingState.FILLING), filling), "known by its origin");
  t.ok(matches(candidate("y", "a"), filling));
  t.notOk(matches(candidate("y", "b", HoldingState.FILLING), filling));
  t.not(objectKey(candidate("x", "a").holding), objectKey(candidate("x", "a", HoldingState.FILLING).holding));
});

t.test("blame, rates, limits, endpoints", async (t) => {
  t.equal(blameOf({ parentSeconds: 1, wireSeconds: 3, verifySeconds: 2, storeSeconds: 0 }), "wire");
  t.equal(blameOf({ parentSeconds: 0, wireSeconds: 0, verifySeconds: 0, storeSeconds: 0 }), "");
  t.same(["100Gbit", "800Mbit/s", "0", "8bit"].map(linkRate.parse), [12.5e9, 100e6, 0, 1]);
  t.same(["", "fast", "10GB", "-1Gbit"].map(linkRate.parse), [undefined, undefined, undefined, undefined]);
  const given = createLinkRate(1000, 5000);
  given.saw(9999);
  t.equal(given.current(), 1000, "a configured rate is not moved");
  const seen = createLinkRate(0, 0);
  seen.saw(10);
  seen.saw(5);
  t.equal(seen.current(), 10);
  t.equal(memoryLimit(123, 1), 123);
  t.ok(memoryLimit(0, 1000) <= 800, "80 % of the tmpfs at most");
  t.equal(moverEndpoint("[::]:6755", "fd00::5"), "[fd00::5]:6755");
  t.equal(moverEndpoint("10.1.1.1:6755", "fd00::5"), "10.1.1.1:6755");
  t.ok(chargeOf(100, 50, 65536, 2) >= 150 && chargeOf(100, 50, 65536, 2) < 100_000);
  t.ok(Number.isInteger(chargeOf(1e9 + 1, 77, 65536, 3)));
});

t.test("one fill for all who want the same; it outlives those who leave, and ends when it is cancelled", async (t) => {
  const board = createFillBoard<number>();
  const work = Promise.withResolvers<number>();
  let started = 0;
  const first = board.start("k", async (report) => {
    started += 1;
    report({ state: "receiving", verifiedBytes: 5n });
    return work.promise;
  });
  const seen: bigint[] = [];
  const unwatch = first.watch(({ verifiedBytes }) => seen.push(verifiedBytes));
  const second = board.start("k", async () => 2);
  t.equal(first, second);
  unwatch();
  work.resolve(1);
  t.equal(await second.done, 1);
  t.equal(started, 1);
  t.equal(board.find("k"), undefined);
  const hanging = board.start(
    "k",
    (_report, signal) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("cancelled")))),
  );
  await board.cancelAll();
  await t.rejects(hanging.done, /cancelled/);
});
