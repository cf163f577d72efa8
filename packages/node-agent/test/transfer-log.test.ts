// What a transfer's time went into, and which ones are remembered.
import { TransferState } from "@weightline/proto/common";
import type { MoverReport } from "@weightline/rdma-native";
import t from "tap";
import { createLinkRate } from "../src/transfers/link-rate.ts";
import { createPhaseClock } from "../src/transfers/phase-clock.ts";
import { createTransferLog } from "../src/transfers/transfer-log.ts";

const report = (totalBytes: bigint, verifiedBytes: bigint, networkBytes = verifiedBytes): MoverReport => ({
  id: 1,
  kind: "progress",
  holdingId: "h",
  totalBytes,
  verifiedBytes,
  networkBytes,
  readBytes: 0n,
  verifiedChunks: 0n,
  refusedChunks: 0n,
  waits: { parentSeconds: 1, wireSeconds: 2, verifySeconds: 3, storeSeconds: 4 },
});

t.test("phases follow each other and add up", async (t) => {
  const clock = createPhaseClock(1000);
  clock.saw(report(0n, 0n), 1050);
  t.match(
    clock.phases(1060),
    { layoutS: 0.06, firstByteS: 0, receivingS: 0, finishingS: 0 },
    "the layout is not there",
  );
  clock.saw(report(100n, 0n), 1100);
  clock.saw(report(100n, 10n), 1300);
  clock.saw(report(100n, 60n), 1500);
  t.match(clock.phases(1600), { layoutS: 0.1, firstByteS: 0.2, receivingS: 0.3, finishingS: 0 });
  clock.saw(report(100n, 100n), 1800);
  clock.end(2000);
  t.match(clock.phases(9000), { layoutS: 0.1, firstByteS: 0.2, receivingS: 0.5, finishingS: 0.2 }, "ended is ended");
});

t.test("a resumed one has bytes before the first comes; one that is over at once only received", async (t) => {
  const resumed = createPhaseClock(0);
  resumed.saw(report(100n, 50n, 0n), 100);
  resumed.saw(report(100n, 60n, 10n), 400);
  t.match(resumed.phases(400), { layoutS: 0.1, firstByteS: 0.3 });
  const quick = createPhaseClock(0);
  quick.end(30);
  t.match(quick.phases(30), { layoutS: 0, firstByteS: 0, receivingS: 0.03, finishingS: 0 });
  const failed = createPhaseClock(0);
  failed.saw(report(100n, 0n), 100);
  failed.end(500);
  t.match(failed.phases(500), { layoutS: 0.1, firstByteS: 0.4, receivingS: 0, finishingS: 0 }, "no byte came");
});

t.test("the log: phases and waits of each, running ones always, a bounded number of ended ones", async (t) => {
  const log = createTransferLog("n", createLinkRate(0, 0));
  const start = (modelName: string) =>
    log.start({
      modelName,
      parent: "p",
      holdingId: "h",
      totalBytes: 100n,
      objectDigest: new Uint8Array(),
      findingSeconds: 0.25,
      openingSeconds: 0.5,
    });
  const running = start("running");
  running.progress(report(100n, 50n));
  for (let i = 0; i < 600; i++) {
    start(`m${i}`).end(report(100n, 100n), i % 2 === 0 ? "" : "it broke", new Uint8Array([i % 256]));
  }
  const all = log.list();
  t.equal(all.length, 500, "bounded");
  t.match(all[0], {
    modelName: "running",
    state: TransferState.RUNNING,
    phases: { findingS: 0.25, openingS: 0.5 },
    waits: { parentS: 1, wireS: 2, verifyS: 3, storeS: 4 },
  });
  t.match(all.at(-1), { modelName: "m599", state: TransferState.FAILED, error: "it broke" });
  t.ok((all.at(-1)?.phases?.receivingS ?? 0) > 0);
});

t.test("ended ones are shown for ten minutes, and as many as are asked for after that", async (t) => {
  const log = createTransferLog("n", createLinkRate(0, 0));
  for (const modelName of ["a", "b", "c"]) {
    log
      .start({
        modelName,
        parent: "p",
        holdingId: "h",
        totalBytes: 1n,
        objectDigest: new Uint8Array(),
        findingSeconds: 0,
        openingSeconds: 0,
      })
      .end(undefined, "", new Uint8Array());
  }
  const names = (last?: number) => log.list(last).map(({ modelName }) => modelName);
  t.same(names(), ["a", "b", "c"]);
  const { now } = performance;
  t.teardown(() => Object.assign(performance, { now }));
  performance.now = () => now.call(performance) + 11 * 60_000;
  t.same(names(), [], "eleven minutes later");
  t.same(names(2), ["b", "c"]);
  t.same(names(9), ["a", "b", "c"]);
});
