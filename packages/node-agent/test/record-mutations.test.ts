// record.json and node.json that anything may have happened to: read as what can be written again, or refused in words.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { create, toBinary } from "@bufbuild/protobuf";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { type SourceIdentity, SourceIdentitySchema } from "@weightline/proto/p2p";
import { WeightlineError } from "@weightline/runtime";
import t from "tap";
import { createRandom, mutateBytes, mutateJson } from "../../../test/support/mutation.ts";
import { type HoldingRecord, readRecord, writeRecord } from "../src/store/holding-record.ts";
import { openStore } from "../src/store/store-folder.ts";

/** The tier `fuzz` runs more. */
const MUTATIONS = Number(process.env["WEIGHTLINE_RECORD_MUTATIONS"] ?? 6000);
const SEED = Number(process.env["WEIGHTLINE_FUZZ_SEED"] ?? 1);
const U32_MAX = 2 ** 32 - 1;

const folder = mkdtempSync("/dev/shm/weightline-records-");
t.teardown(() => rmSync(folder, { recursive: true }));

const identity: SourceIdentity = create(SourceIdentitySchema, {
  ...filesIdentity("Org/Name", "main"),
  tensorParallelSize: 8,
  mxSourceType: 3,
  dtype: "BF16",
});
const base: Omit<HoldingRecord, "source"> = {
  identities: [
    { identity, rank: 3 },
    { identity: filesIdentity("m"), rank: 0 },
  ],
  state: "complete",
  origin: "a".repeat(32),
  layoutDigest: "b".repeat(64),
  objectDigest: "c".repeat(64),
  createdMs: 1_700_000_000_000,
};
const file = {
  path: "a",
  source: "/m/a",
  bytes: 1n << 40n,
  mtimeNs: 1_700_000_000_123_456_789n,
  inode: 7n,
  device: 5n,
};
const records: HoldingRecord[] = [
  { ...base, source: { kind: "load", path: "/m", files: [file, { ...file, path: "b/c" }] } },
  { ...base, source: { kind: "transfer", node: "other", expected: "d".repeat(64) } },
  { ...base, source: { kind: "offer" }, state: "filling", objectDigest: "" },
];

/** What was read must be what could have been written. */
async function checkRead(read: HoldingRecord): Promise<string | undefined> {
  for (const named of read.identities) {
    if (!Number.isSafeInteger(named.rank) || named.rank < 0 || named.rank > U32_MAX) {
      return `rank ${named.rank}`;
    }
    toBinary(SourceIdentitySchema, named.identity);
    if (!/^[0-9a-f]{16}$/.test(computeSourceId(named.identity))) {
      return "source id";
    }
  }
  if (read.source.kind === "load") {
    for (const { bytes, inode, device, mtimeNs } of read.source.files) {
      if ([bytes, inode, device].some((n) => BigInt.asUintN(64, n) !== n) || BigInt.asIntN(64, mtimeNs) !== mtimeNs) {
        return "a number of a source file that has more than 64 bits";
      }
    }
  }
  mkdirSync(`${folder}/again`, { recursive: true });
  await writeRecord(`${folder}/again`, read);
  const again = readRecord(`${folder}/again`);
  const text = (record: HoldingRecord | undefined) =>
    JSON.stringify(record, (_, value) => (typeof value === "bigint" ? `${value}n` : value));
  return text(again) === text(read) ? undefined : `not the same when written and read again: ${text(again)}`;
}

function checkRefusal(error: unknown): string | undefined {
  if (!(error instanceof WeightlineError)) {
    return `no error of ours: ${error instanceof Error ? error.stack : String(error)}`;
  }
  if (error.code !== "Corrupt" && !(error.code === "Refused" && error.field === "min_reader")) {
    return `code ${error.code}`;
  }
  return error.field === "" || error.field === undefined ? `no field: ${error.message}` : undefined;
}

t.test(`${MUTATIONS} changed records, seed ${SEED}`, { timeout: 380_000 }, async (t) => {
  const random = createRandom(SEED);
  const texts: string[] = [];
  for (const record of records) {
    await writeRecord(folder, record);
    // Without the record's own digest, which would refuse nearly all before another check is reached.
    const { digest: _, ...unproved } = JSON.parse(readFileSync(`${folder}/record.json`, "utf8"));
    texts.push(JSON.stringify(unproved, undefined, 1));
  }
  const tokens = ['"__proto__":', '{"toString":1}', "null", "[]", "{}", "1e999", '"\\ud800"', ","].map((token) =>
    Buffer.from(token),
  );
  const wrong: string[] = [];
  const counts = { taken: 0, refused: 0 };
  for (let i = 0; i < MUTATIONS && wrong.length < 5; i++) {
    const text = random.pick(texts);
    const changed = random.oneIn(2)
      ? mutateBytes(Buffer.from(text), random, tokens)
      : Buffer.from(
          JSON.stringify(mutateJson(random.oneIn(2) ? mutateJson(JSON.parse(text), random) : JSON.parse(text), random)),
        );
    writeFileSync(`${folder}/record.json`, changed);
    let problem: string | undefined;
    try {
      const read = readRecord(folder);
      counts.taken += 1;
      problem = read === undefined ? "a record that is there was not seen" : await checkRead(read);
    } catch (error) {
      counts.refused += 1;
      problem = checkRefusal(error);
    }
    if (problem !== undefined) {
      wrong.push(`${problem}\n${changed.toString("latin1")}`);
    }
  }
  t.strictSame(wrong, []);
  t.comment(JSON.stringify(counts));
  t.ok(counts.taken > MUTATIONS / 50 && counts.refused > MUTATIONS / 4, "both happened");
});

t.test(
  "changed node.json: the store opens with a whole epoch and an id, or is refused as a newer agent's",
  async (t) => {
    const random = createRandom(SEED);
    const store = `${folder}/store`;
    (await openStore(store, "", "n")).close();
    const text = readFileSync(`${store}/node.json`, "utf8");
    const count = Math.max(200, Math.floor(MUTATIONS / 100));
    for (let i = 0; i < count; i++) {
      const changed = random.oneIn(2)
        ? mutateBytes(Buffer.from(text), random, [Buffer.from("null"), Buffer.from("1e999")])
        : Buffer.from(JSON.stringify(random.oneIn(8) ? null : mutateJson(JSON.parse(text), random)));
      writeFileSync(`${store}/node.json`, changed);
      try {
        const opened = await openStore(store, "", "n");
        const epoch = opened.epoch();
        opened.close();
        if (
          epoch < 1n ||
          epoch > BigInt(Number.MAX_SAFE_INTEGER) ||
          opened.storeId === "" ||
          opened.storeId.length > 64
        ) {
          t.fail(`epoch ${epoch}, id ${opened.storeId}: ${changed.toString("latin1")}`);
        }
      } catch (error) {
        if (checkRefusal(error) !== undefined) {
          t.fail(`${checkRefusal(error)}: ${changed.toString("latin1")}`);
        }
      }
    }
    t.pass(`${count} changed files`);
  },
);
