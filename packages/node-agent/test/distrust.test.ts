// Who is left for wrong bytes, and when such a peer is asked again.
import { create } from "@bufbuild/protobuf";
import { HoldingSchema, HoldingState } from "@weightline/proto/common";
import t from "tap";
import type { Candidate } from "../src/fills/candidates.ts";
import { createDistrust, DISTRUST_MAX_MS, DISTRUST_MIN_MS, REPAIRS_BELIEVED } from "../src/fills/distrust.ts";

function candidate(change: { node?: string; object?: string; id?: string; repairs?: number } = {}): Candidate {
  return {
    node: change.node ?? "liar",
    address: "h:1",
    epoch: 1n,
    holding: create(HoldingSchema, {
      holdingId: (change.id ?? "1").repeat(32),
      state: HoldingState.COMPLETE,
      objectDigest: Buffer.from((change.object ?? "a").repeat(64), "hex"),
      repairs: change.repairs ?? 0,
    }),
  };
}

t.test("one that lied is left for this object only, for a time", async (t) => {
  let now = 0;
  const distrust = createDistrust({ now: () => now });
  distrust.add(candidate());
  t.ok(distrust.has(candidate()));
  t.notOk(distrust.has(candidate({ node: "other" })));
  t.notOk(distrust.has(candidate({ object: "b" })));
  now = DISTRUST_MIN_MS - 1;
  t.ok(distrust.has(candidate()));
  now = DISTRUST_MIN_MS;
  t.notOk(distrust.has(candidate()), "asked again");
});

t.test("the time grows with each repetition, up to its limit", async (t) => {
  let now = 0;
  const distrust = createDistrust({ now: () => now });
  const times: number[] = [];
  for (let i = 0; i < 8; i++) {
    distrust.add(candidate());
    let restMs = 0;
    while (distrust.has(candidate())) {
      now += DISTRUST_MIN_MS / 4;
      restMs += DISTRUST_MIN_MS / 4;
    }
    times.push(restMs);
  }
  t.same(times.slice(0, 3), [DISTRUST_MIN_MS, 4 * DISTRUST_MIN_MS, 16 * DISTRUST_MIN_MS]);
  t.equal(times.at(-1), DISTRUST_MAX_MS);
});

t.test("a repair or another holding ends it at once; a word that was broken too often does not", async (t) => {
  const distrust = createDistrust({ now: () => 0 });
  distrust.add(candidate());
  t.notOk(distrust.has(candidate({ repairs: 1 })), "mended");
  t.notOk(distrust.has(candidate({ id: "2" })), "loaded anew");
  for (let repairs = 1; repairs < REPAIRS_BELIEVED; repairs++) {
    distrust.add(candidate({ repairs }));
    t.ok(distrust.has(candidate({ repairs })), "wrong again: out again");
  }
  t.ok(distrust.has(candidate({ repairs: REPAIRS_BELIEVED })), "its word counts no more");
  t.ok(distrust.has(candidate({ id: "3" })));
});

t.test("what is remembered has a limit", async (t) => {
  const distrust = createDistrust({ now: () => 0 });
  for (let i = 0; i < 5000; i++) {
    distrust.add(candidate({ node: `n${i}` }));
  }
  t.notOk(distrust.has(candidate({ node: "n0" })), "the oldest was forgotten");
  t.ok(distrust.has(candidate({ node: "n4999" })));
});
