// Workers that come, change their size, beat and go at random: what is listed and told stays what was published.
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { createMemoryDirectory, readWorker } from "@weightline/control-plane";
import { computeSourceId } from "@weightline/proto";
import {
  ListSourcesResponseSchema,
  SourceIdentitySchema,
  SourceStatus,
  type WorkerMetadata,
  WorkerMetadataSchema,
} from "@weightline/proto/p2p";
import t from "tap";

const IDENTITY = create(SourceIdentitySchema, { modelName: "churn" });
const SOURCE_ID = computeSourceId(IDENTITY);
const GC_TIMEOUT_MS = 60_000;
const WORKERS = 40;
const ROUNDS = 400;
const OPERATIONS = 12;
/** Bytes of a rack's name and of the metadata: small ones, and such that fill pages of their own. */
const SIZES = [0, 3, 31, 32, 33, 200, 4000, 16_300, 20_000];

/** A generator of whole numbers below a limit, the same for each run of a seed. */
function createDice(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

interface Known {
  metadata: WorkerMetadata;
  load: number | undefined;
  heardAt: number;
}

for (const seed of [1, 2, 3]) {
  t.test(`seed ${seed}`, async (t) => {
    const dice = createDice(seed);
    const pick = <T>(items: readonly T[]): T => items[dice(items.length)] as T;
    let now = 0;
    const directory = createMemoryDirectory({
      heartbeatTimeoutMs: GC_TIMEOUT_MS,
      gcTimeoutMs: GC_TIMEOUT_MS,
      announceIntervalMs: 10_000,
      reaperIntervalMs: 1,
      clock: { monotonicMs: () => now, unixMs: () => 1_800_000_000_000 + now },
    });
    const known = new Map<string, Known>();
    const publish = async (workerId: string) => {
      const metadata = create(WorkerMetadataSchema, {
        workerRank: known.get(workerId)?.metadata.workerRank ?? dice(8),
        agentName: "a".repeat(pick(SIZES)),
        accelerator: pick(["cuda", "rocm", ""]),
        topology: { rack: String(dice(10)).repeat(pick(SIZES)) },
        status: SourceStatus.INITIALIZING,
      });
      const worker = readWorker(toBinary(WorkerMetadataSchema, metadata));
      await directory.publish({ sourceId: SOURCE_ID, workerId, identity: IDENTITY, worker });
      known.set(workerId, { metadata, load: known.get(workerId)?.load, heardAt: now });
    };
    const beat = async (workerId: string) => {
      const entry = known.get(workerId);
      if (entry !== undefined) {
        const load = dice(2) === 0 ? undefined : 0.25;
        const { workerRank: rank } = entry.metadata;
        const status = SourceStatus.INITIALIZING;
        await directory.updateStatus({ sourceId: SOURCE_ID, workerId, rank, status, sourceLoad: load });
        Object.assign(entry, { load, heardAt: now });
      }
    };
    let gone = 0;
    let wrong = "";
    for (let round = 0; round < ROUNDS && wrong === ""; round++) {
      for (let i = 0; i < OPERATIONS; i++) {
        now += dice(1500);
        for (const [workerId, { heardAt }] of known) {
          if (now - heardAt >= GC_TIMEOUT_MS) {
            known.delete(workerId);
            gone += 1;
          }
        }
        await (dice(3) === 0 ? publish : beat)(`w${dice(WORKERS)}`);
      }
      const { instances } = fromBinary(ListSourcesResponseSchema, await directory.list({ sourceId: SOURCE_ID }));
      const listed = instances.map(({ workerId, workerRank, accelerator, topology, sourceLoad, updatedAt }) =>
        JSON.stringify([workerId, workerRank, accelerator, topology, sourceLoad, Number(updatedAt)]),
      );
      const expected = [...known].map(([workerId, { metadata, load, heardAt }]) => {
        const { workerRank, accelerator, topology } = metadata;
        return JSON.stringify([workerId, workerRank, accelerator, topology, load, 1_800_000_000_000 + heardAt]);
      });
      if (listed.sort().join() !== expected.sort().join()) {
        wrong = `round ${round}: ${listed.length} listed, ${expected.length} published`;
      }
      const workerId = `w${dice(WORKERS)}`;
      const found = await directory.worker(SOURCE_ID, workerId);
      const entry = known.get(workerId);
      const told = found === undefined ? undefined : fromBinary(WorkerMetadataSchema, found.metadata);
      if (
        told?.agentName !== entry?.metadata.agentName ||
        told?.topology["rack"] !== entry?.metadata.topology["rack"]
      ) {
        wrong = `round ${round}: ${workerId} is told wrongly`;
      }
    }
    t.equal(wrong, "", "lists and replies are what was published");
    t.ok(gone > WORKERS, `workers went and came again: ${gone} times`);
  });
}
