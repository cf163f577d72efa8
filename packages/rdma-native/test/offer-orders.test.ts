import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import type { GivenMemory } from "@weightline/rdma-native";
import t from "tap";
import { firstLine } from "./agent-helpers.ts";
import { createTestMover, newId, OrderError, removeStore } from "./native-helpers.ts";

const mover = createTestMover();
const holders: ChildProcess[] = [];
t.teardown(async () => {
  for (const holder of holders) {
    holder.kill("SIGKILL");
  }
  mover.close();
  await removeStore(mover.store);
});

/** A process that has a sealed memfd open, as an agent has: its bytes are what the Python expression gives. */
async function sealed(bytes: string, seal = true): Promise<GivenMemory> {
  const code = `
import fcntl, json, os, sys, time
data = ${bytes}
fd = os.memfd_create("m", os.MFD_ALLOW_SEALING)
os.write(fd, data)
if ${seal ? "True" : "False"}: fcntl.fcntl(fd, 1033, 15)
print(fd, len(data), flush=True)
time.sleep(600)`;
  const holder = spawn("python3", ["-c", code], { stdio: ["ignore", "pipe", "inherit"] });
  holders.push(holder);
  const [descriptor = "0", size = "0"] = (await firstLine(holder)).split(" ");
  return { agent: holder.pid ?? 0, descriptor: Number(descriptor), bytes: BigInt(size) };
}

const json = (value: unknown) => `json.dumps(json.loads(${JSON.stringify(JSON.stringify(value))})).encode()`;

async function arrange(list: string) {
  const holdingId = newId();
  const memory = await sealed(list);
  const { scanned } = await mover.order({ kind: "arrange", holdingId, memory, algorithm: "xxh3-128" });
  const layout = readFileSync(`${mover.store}/holdings/${holdingId}/layout`);
  const header = JSON.parse(layout.toString("utf8", 16, 16 + layout.readUInt32LE(12)));
  const at = 16 + layout.readUInt32LE(12);
  const n: number = header.items;
  const sizes = at + 8 * n;
  const ends = sizes + 8 * n + 8 * header.dims;
  const segments = ends + Math.ceil(n / 2) * 8;
  const aliases = segments + Math.ceil(n / 2) * 8;
  const bytesEnd = aliases + Math.ceil(n / 2) * 8 + 2 * Math.ceil(n / 8) * 8;
  const rows: Record<string, [number, number, number, number]> = {};
  let from = 0;
  for (let i = 0; i < n; i++) {
    const end = layout.readUInt32LE(ends + 4 * i);
    rows[layout.toString("utf8", bytesEnd + from, bytesEnd + end)] = [
      layout.readUInt32LE(segments + 4 * i),
      Number(layout.readBigUInt64LE(at + 8 * i)),
      Number(layout.readBigUInt64LE(sizes + 8 * i)),
      layout.readUInt32LE(aliases + 4 * i),
    ];
    from = end;
  }
  return { holdingId, scanned, segments: header.segments.map(({ bytes }: { bytes: number }) => bytes), rows };
}

async function failure(promise: Promise<unknown>): Promise<OrderError["fault"]> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof OrderError) {
      return error.fault;
    }
    throw error;
  }
  throw new Error("it did not fail");
}

const GIBIBYTE = 1 << 30;
const u8 = (size: number) => ({ dtype: "U8", shape: [size] });

t.test("items lie by name bytes at multiples of 256, in segments of at most 1 GiB, larger ones alone", async (t) => {
  const exact = await arrange(json({ a: u8(GIBIBYTE - 256), b: u8(256), c: u8(1) }));
  t.same(exact.segments, [GIBIBYTE, 1], "a GiB exactly is one segment");
  t.same(exact.rows["b"], [0, GIBIBYTE - 256, 256, 1]);
  t.same(exact.rows["c"], [1, 0, 1, 2]);
  const over = await arrange(json({ a: u8(GIBIBYTE - 256), b: u8(257) }));
  t.same(over.segments, [GIBIBYTE - 256, 257], "one byte more begins another");
  const rounded = await arrange(json({ a: u8(GIBIBYTE - 300), b: u8(45) }));
  t.same(rounded.segments, [GIBIBYTE - 256 + 45], "the gap before an item counts");
  const large = await arrange(json({ a: u8(5), b: u8(3 * GIBIBYTE), c: u8(7), d: u8(GIBIBYTE + 1), e: u8(1) }));
  t.same(large.segments, [5, 3 * GIBIBYTE, 7, GIBIBYTE + 1, 1]);
  t.equal(large.scanned?.totalBytes, BigInt(4 * GIBIBYTE + 14));
});

t.test("order is that of UTF-8 bytes; aliases and empty items take no bytes", async (t) => {
  const { rows, segments, scanned } = await arrange(
    json({
      "\u{1F600}": u8(3),
      "\uFF61": u8(2),
      z: u8(0),
      "": u8(1),
      b: { alias: "\uFF61" },
      y: { alias: "z" },
      "~": { alias: "b2" },
      b2: u8(4),
    }),
  );
  t.same(Object.keys(rows), ["", "b", "b2", "y", "z", "~", "\uFF61", "\u{1F600}"]);
  t.same(rows["b"], [0, 256, 2, 1], "the first name of shared bytes has the row");
  t.same(rows["\uFF61"], [0, 256, 2, 1], "the tensor itself points to it");
  t.same(rows["b2"], [0, 512, 4, 2]);
  t.same(rows["~"], [0, 512, 4, 2]);
  t.same(rows["z"], [0, 0, 0, 3]);
  t.same(rows["y"], [0, 0, 0, 3]);
  t.same(segments, [771]);
  t.equal(scanned?.itemCount, 8n);
  const empty = await arrange(json({ a: u8(0) }));
  t.same(empty.segments, [0], "tensors without any byte have one empty segment");
});

t.test("limits of a list: names, rank, segments, each at and above", async (t) => {
  const name = (length: number) => json({ ["n".repeat(length)]: u8(1) });
  t.ok((await arrange(name(512))).scanned);
  const rank = (count: number) => json({ a: { dtype: "U8", shape: Array.from({ length: count }, () => 1) } });
  t.ok((await arrange(rank(16))).scanned);
  const segments = (count: number) =>
    `("{" + ",".join('"%04d":{"dtype":"U8","shape":[600000000]}' % i for i in range(${count})) + "}").encode()`;
  t.equal((await arrange(segments(4096))).segments.length, 4096);
  const order = async (list: string) =>
    failure(mover.order({ kind: "arrange", holdingId: newId(), memory: await sealed(list), algorithm: "xxh3-128" }));
  t.match(await order(name(513)), { code: "InvalidArgument", value: "513", limit: "512" });
  t.match(await order(rank(17)), { code: "InvalidArgument", limit: "16" });
  t.match(await order(segments(4097)), { code: "InvalidArgument", limit: "4096" });
});

t.test("two million names are taken, one more is refused", async (t) => {
  const many = (count: number) =>
    `("{" + ",".join('"%07d":{"dtype":"U8","shape":[1]}' % i for i in range(${count})) + "}").encode()`;
  const { scanned } = await mover.order({
    kind: "arrange",
    holdingId: newId(),
    memory: await sealed(many(2_000_000)),
    algorithm: "xxh3-128",
  });
  t.equal(scanned?.itemCount, 2_000_000n);
  const more = await failure(
    mover.order({
      kind: "arrange",
      holdingId: newId(),
      memory: await sealed(many(2_000_001)),
      algorithm: "xxh3-128",
    }),
  );
  t.match(more, { code: "InvalidArgument", value: "2000001", limit: "2000000" });
});

t.test("a list of 256 MiB is read, one byte more is not", async (t) => {
  const list = (bytes: number) => `b'{"a":{"dtype":"U8","shape":[1]}}' + b" " * (${bytes} - 32)`;
  const order = async (bytes: number) =>
    mover.order({
      kind: "arrange",
      holdingId: newId(),
      memory: await sealed(list(bytes)),
      algorithm: "xxh3-128",
    });
  t.equal((await order(256 << 20)).scanned?.itemCount, 1n);
  t.match(await failure(order((256 << 20) + 1)), {
    code: "InvalidArgument",
    value: "268435457",
    limit: "268435456",
  });
});

t.test("segments are copied in any order, again where they are there, and finish waits for all", async (t) => {
  const { holdingId, segments } = await arrange(json({ a: u8(2 * GIBIBYTE), b: u8(100_000), c: u8(GIBIBYTE) }));
  t.equal(segments.length, 3);
  const part = await sealed("bytes(range(250)) * 400");
  const copy = (segment: number, memory: GivenMemory) =>
    mover.order({ kind: "copy", holdingId, segment, memory, threads: 2 });
  const done = await copy(1, part);
  t.equal(done.verifiedBytes, 100_000n);
  t.equal(done.readBytes, 100_000n);
  t.equal((await copy(1, part)).readBytes, 0n, "given again, nothing is read");
  t.match(await failure(mover.order({ kind: "finish", holdingId })), {
    code: "InvalidArgument",
    message: /100000 of 3221325472 bytes/,
  });
  t.match(await failure(copy(3, part)), { code: "InvalidArgument", field: "segment", limit: "2" });
  t.match(await failure(copy(2, part)), { code: "Refused", message: /segment 2 of the offer ends before byte/ });
  t.match(await failure(copy(1, { ...part, bytes: 5n })), {
    code: "Internal",
    message: /not sealed, or of another size/,
  });
  const open = await sealed("bytes(5)", false);
  t.match(await failure(copy(1, open)), { code: "Internal", message: /not sealed/ });
  await mover.order({ kind: "evict", holdingId, onlyIfFree: false });
});
