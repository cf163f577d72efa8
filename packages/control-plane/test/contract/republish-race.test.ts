// A second publish of a live worker must not hide it: not even for one call in between.
import { fileURLToPath } from "node:url";
import { SourceStatus } from "@weightline/proto/p2p";
import type { Test } from "tap";
import { startCommand } from "../../../../test/support/program.ts";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

const PUBLISHES_MIN = 200;
const ROUNDS_MIN = 200;
/** Enough that a publish is no single packet. */
const METADATA_BYTES = 40_000;
const READER = fileURLToPath(new URL("./racing-reader.ts", import.meta.url));

onEveryBackend(async (t, { p2p, controlPlane, ready, shared }, start) => {
  const race = async (t: Test, readAt: number, revision: string) => {
    const { sourceId, workerId } = await ready({ revision });
    const reader = startCommand([
      process.execPath,
      "--disable-warning=ExperimentalWarning",
      READER,
      String(readAt),
      revision,
      workerId,
    ]);
    t.teardown(() => reader.stop());
    await reader.waitFor(/^reading$/m);
    const roundsSaid = () => 100 * (reader.output().match(/^more$/gm)?.length ?? 0);
    const identity = identityOf({ revision });
    let publishes = 0;
    const end = performance.now() + 60_000;
    while ((publishes < PUBLISHES_MIN || roundsSaid() < ROUNDS_MIN) && performance.now() < end) {
      const { success } = await p2p.publishMetadata({
        identity,
        workerId,
        worker: {
          status: [SourceStatus.UNKNOWN, SourceStatus.INITIALIZING, SourceStatus.READY][publishes % 3] ?? 0,
          topology: { version: String(publishes) },
          backendMetadata: { case: "nixlMetadata", value: Buffer.alloc(METADATA_BYTES, publishes) },
        },
      });
      publishes += 1;
      if (!success) {
        t.fail(`publish ${publishes} was refused`);
      }
      if (publishes % 7 === 0) {
        await p2p.updateStatus({ mxSourceId: sourceId, workerId, status: SourceStatus.READY, sourceLoad: 0.5 });
      }
    }
    reader.end();
    const [said] = await reader.waitFor(/^\{.*\}$/m);
    const seen = JSON.parse(said) as { rounds: number; missed: number; versions: number };
    t.ok(publishes >= PUBLISHES_MIN && seen.rounds >= ROUNDS_MIN, `${publishes} publishes, ${seen.rounds} rounds`);
    t.ok(seen.versions > PUBLISHES_MIN / 10, `they raced: the reader saw ${seen.versions} of the publishes`);
    t.equal(seen.missed, 0, "it was READY in every one");
  };

  t.test("a racing reader never misses a READY worker that is published again and again", (t) =>
    race(t, controlPlane.port, "race"),
  );

  t.test("nor does one at another replica", { skip: shared ? false : "each has records of its own" }, async (t) =>
    race(t, (await start(t)).controlPlane.port, "race at another"),
  );
});
