import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { isDeepStrictEqual } from "node:util";
import { create } from "@bufbuild/protobuf";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { SourceIdentitySchema } from "@weightline/proto/p2p";
import t from "tap";
import { type HoldingRecord, readRecord, writeRecord } from "../src/store/holding-record.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-record-`);
t.teardown(() => rmSync(folder, { recursive: true }));
const path = `${folder}/record.json`;

const full = create(SourceIdentitySchema, {
  modelName: "Org/Name",
  mxVersion: "0.5.0",
  mxSourceType: 3,
  backendFramework: 1,
  tensorParallelSize: 8,
  dtype: "BF16",
  extraParameters: { Foo: "A", __proto__x: "b" },
  revision: "R",
  gpuArch: "SM100",
});
const record: HoldingRecord = {
  identities: [
    { identity: filesIdentity("m"), rank: 0 },
    { identity: full, rank: 7 },
  ],
  state: "complete",
  source: {
    kind: "load",
    path: "/m",
    files: [
      {
        path: "a",
        source: "/m/a",
        bytes: 2n ** 60n,
        mtimeNs: 1_700_000_000_123_456_789n,
        inode: 2n ** 63n,
        device: 5n,
      },
    ],
  },
  origin: "a".repeat(32),
  layoutDigest: "b".repeat(64),
  objectDigest: "c".repeat(64),
  createdMs: 1_700_000_000_000,
};

t.test("what is written is read back: 64-bit numbers, original case, the same source ids", async (t) => {
  await writeRecord(folder, record);
  const read = readRecord(folder);
  t.same(read?.source, record.source);
  t.same(
    read?.identities.map(({ identity }) => computeSourceId(identity)),
    record.identities.map(({ identity }) => computeSourceId(identity)),
  );
  t.match(read, { state: "complete", origin: record.origin, objectDigest: record.objectDigest });
  const json = JSON.parse(readFileSync(path, "utf8"));
  t.match(json, {
    format: 1,
    min_reader: 1,
    layout_digest: record.layoutDigest,
    identities: [
      {},
      { rank: 7, identity: { model_name: "Org/Name", extra_parameters: { Foo: "A" }, tensor_parallel_size: 8 } },
    ],
  });
});

t.test("no record, a newer one, and every field that is wrong", async (t) => {
  rmSync(path);
  t.equal(readRecord(folder), undefined);
  await writeRecord(folder, record);
  const { digest: _, ...good } = JSON.parse(readFileSync(path, "utf8"));
  writeFileSync(path, JSON.stringify({ ...good, min_reader: 2 }));
  t.throws(() => readRecord(folder), { code: "Refused", field: "min_reader", value: "2", limit: "1" });
  writeFileSync(path, JSON.stringify({ ...good, format: 9, unknown: true }));
  t.ok(readRecord(folder), "a newer format that this agent may read");
  const wrong: Array<[string, unknown, string]> = [
    ["state", "ready", "state"],
    ["origin", "../x", "origin"],
    ["layout_digest", "zz", "layout_digest"],
    ["object_digest", 5, "object_digest"],
    ["created_ms", -1, "created_ms"],
    ["identities", {}, "identities"],
    ["identities", [{ identity: { model_name: 5 }, rank: 0 }], "identity"],
    ["identities", [{ identity: { extra_parameters: { a: 1 } }, rank: 0 }], "identity"],
    ["identities", [{ identity: {}, rank: 1.5 }], "rank"],
    ["source", null, ""],
    ["source", { kind: "magic" }, "kind"],
    ["source", { kind: "load", path: "/m", files: [{ path: "a", source: "b", bytes: "1e9" }] }, "bytes"],
    ["min_reader", "1", "min_reader"],
  ];
  for (const [name, value, field] of wrong) {
    writeFileSync(path, JSON.stringify({ ...good, [name]: value }));
    t.throws(
      () => readRecord(folder),
      { code: "Corrupt", ...(field === "" ? {} : { field }) },
      `${name}: ${JSON.stringify(value)}`,
    );
  }
  for (const text of ["", "{", "[]", "null", '"x"', "\u0000"]) {
    writeFileSync(path, text);
    t.throws(() => readRecord(folder), { code: "Corrupt" }, JSON.stringify(text));
  }
});

t.test("every flipped bit of a record is found, or changes nothing that it says", async (t) => {
  await writeRecord(folder, record);
  const bytes = readFileSync(path);
  const right = readRecord(folder);
  let found = 0;
  let newer = 0;
  for (let bit = 0; bit < bytes.length * 8; bit += 3) {
    const flipped = Buffer.from(bytes);
    flipped.writeUInt8(flipped.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
    writeFileSync(path, flipped);
    try {
      const read = readRecord(folder);
      if (!isDeepStrictEqual(read, right)) {
        t.fail(`bit ${bit} made another record of it: ${flipped}`);
      }
    } catch (error) {
      found += 1;
      newer += (error as { field?: string }).field === "min_reader" ? 1 : 0;
    }
  }
  t.ok(found > bytes.length, `${found} of ${(bytes.length * 8) / 3} flips were found`);
  t.ok(newer > 0, `${newer} of them made it a newer agent's: those stay untouched`);
  await writeRecord(folder, record);
  const { digest, ...json } = JSON.parse(readFileSync(path, "utf8"));
  t.match(digest, /^[0-9a-f]{64}$/);
  writeFileSync(path, JSON.stringify(json));
  t.same(readRecord(folder), right, "a record of an agent that wrote no digest");
  writeFileSync(path, JSON.stringify({ ...json, later: [1], digest }));
  t.throws(
    () => readRecord(folder),
    { code: "Corrupt", field: "digest" },
    "members that are not known here count, too",
  );
});
