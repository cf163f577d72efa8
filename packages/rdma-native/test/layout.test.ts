import { readdirSync, readFileSync } from "node:fs";
import { NativeError, native } from "@weightline/rdma-native";
import t from "tap";

const FOLDER = new URL("./vectors/layout/", import.meta.url);
const names = readdirSync(FOLDER).filter((name) => name.endsWith(".bin"));

/** A small generator with a fixed seed: the same mutations in every run. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

t.test("every vector of the independent generator decodes and encodes to the same bytes", async (t) => {
  t.ok(names.length >= 9);
  for (const name of names) {
    const bytes = readFileSync(new URL(name, FOLDER));
    t.same(Buffer.from(native.recodeLayout(bytes)), bytes, name);
  }
});

t.test("every single flipped bit is refused, or is another valid layout: never a crash", async (t) => {
  let refused = 0;
  let other = 0;
  for (const name of names) {
    const bytes = readFileSync(new URL(name, FOLDER));
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const mutated = Buffer.from(bytes);
      mutated.writeUInt8(mutated.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
      try {
        const again = native.recodeLayout(mutated);
        // What was accepted must be exactly what was given: one layout has one encoding.
        if (!Buffer.from(again).equals(mutated)) {
          t.fail(`${name}: bit ${bit} was accepted and changed`);
        }
        other += 1;
      } catch (error) {
        if (!(error instanceof NativeError) || !["Corrupt", "Refused", "InvalidArgument"].includes(error.code)) {
          t.fail(`${name}: bit ${bit}: ${error}`);
        }
        refused += 1;
      }
    }
  }
  t.ok(refused > other, `${refused} refused, ${other} other layouts`);
});

t.test("10,000 mutated layouts: cut, grown, spliced", async (t) => {
  const next = random(7);
  const pool = names.map((name) => readFileSync(new URL(name, FOLDER)));
  const pick = () => pool[Math.floor(next() * pool.length)] ?? Buffer.alloc(0);
  let refused = 0;
  for (let i = 0; i < 10_000; i++) {
    const from = pick();
    const cut = Math.floor(next() * from.length);
    const tail = pick();
    const mutated =
      next() < 0.3
        ? from.subarray(0, cut)
        : Buffer.concat([from.subarray(0, cut), tail.subarray(Math.floor(next() * tail.length))]);
    try {
      native.recodeLayout(mutated);
    } catch (error) {
      if (!(error instanceof NativeError)) {
        t.fail(`mutation ${i}: ${error}`);
      }
      refused += 1;
    }
  }
  t.ok(refused > 9000, `${refused} refused`);
});

t.test("a newer version is refused in words", async (t) => {
  const bytes = Buffer.from(readFileSync(new URL("one-tensor.bin", FOLDER)));
  bytes.writeUInt32LE(2, 8);
  t.throws(() => native.recodeLayout(bytes), { code: "Refused", field: "layout.version", value: "2", limit: "1" });
});
