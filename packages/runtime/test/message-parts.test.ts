// Long requests are decoded in parts: to what protobuf-es makes of the whole, and little at once.

import { isDeepStrictEqual } from "node:util";
import { create, type DescField, type DescMessage, fromBinary, ScalarType, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { FileDescriptorSetSchema, StructSchema } from "@bufbuild/protobuf/wkt";
import { AnnounceRequestSchema } from "@weightline/proto/node";
import { PublishMetadataRequestSchema, WorkerMetadataSchema } from "@weightline/proto/p2p";
import t from "tap";
import { createRandom, mutateBytes, type Random } from "../../../test/support/mutation.ts";
import { decodeInParts } from "../src/rpc/message-parts.ts";
import { checkMessageValues } from "../src/rpc/message-values.ts";

const TYPES: readonly DescMessage[] = [
  AnnounceRequestSchema,
  PublishMetadataRequestSchema,
  WorkerMetadataSchema,
  FileDescriptorSetSchema,
  StructSchema,
];
const UNKNOWN_NUMBER = 5000;
const DEPTH_MAX = 6;

function scalar(writer: BinaryWriter, number: number, type: ScalarType, random: Random): void {
  const text = () => "weights-".repeat(random.oneIn(20) ? 400 : random.below(4));
  switch (type) {
    case ScalarType.STRING:
      writer.tag(number, WireType.LengthDelimited).string(text());
      break;
    case ScalarType.BYTES:
      writer.tag(number, WireType.LengthDelimited).bytes(Buffer.from(text()));
      break;
    case ScalarType.DOUBLE:
      writer.tag(number, WireType.Bit64).double(random.below(1000));
      break;
    case ScalarType.FLOAT:
      writer.tag(number, WireType.Bit32).float(random.below(1000));
      break;
    case ScalarType.FIXED64:
    case ScalarType.SFIXED64:
      writer.tag(number, WireType.Bit64).fixed64(random.below(1000));
      break;
    case ScalarType.FIXED32:
    case ScalarType.SFIXED32:
      writer.tag(number, WireType.Bit32).fixed32(random.below(1000));
      break;
    case ScalarType.BOOL:
      writer.tag(number, WireType.Varint).bool(random.oneIn(2));
      break;
    default:
      writer.tag(number, WireType.Varint).uint32(random.oneIn(4) ? random.below(2 ** 31) : random.below(2));
  }
}

function value(writer: BinaryWriter, field: DescField, random: Random, depth: number): void {
  if (field.fieldKind === "map") {
    writer.tag(field.number, WireType.LengthDelimited).fork();
    scalar(writer, 1, field.mapKey, random);
    if (field.mapKind === "message") {
      writer.tag(2, WireType.LengthDelimited).bytes(encoded(field.message, random, depth + 1));
    } else {
      scalar(writer, 2, field.mapKind === "enum" ? ScalarType.INT32 : field.scalar, random);
    }
    writer.join();
  } else if (field.message !== undefined) {
    writer.tag(field.number, WireType.LengthDelimited).bytes(encoded(field.message, random, depth + 1));
  } else {
    scalar(
      writer,
      field.number,
      field.enum === undefined ? (field.scalar ?? ScalarType.INT32) : ScalarType.INT32,
      random,
    );
  }
}

/** Fields of the type in any order, again and again, and some that it does not have. */
function encoded(type: DescMessage, random: Random, depth: number): Uint8Array {
  const writer = new BinaryWriter();
  const count = depth > DEPTH_MAX ? 0 : random.below(depth === 0 ? 40 : random.oneIn(6) ? 40 : 6);
  for (let i = 0; i < count; i++) {
    if (type.fields.length === 0 || random.oneIn(12)) {
      scalar(writer, UNKNOWN_NUMBER + random.below(2), random.oneIn(2) ? ScalarType.STRING : ScalarType.UINT32, random);
    } else {
      value(writer, random.pick(type.fields), random, depth);
    }
  }
  return writer.finish();
}

type Decoded = { message: unknown; steps: number } | { fault: true };

function inParts(type: DescMessage, bytes: Uint8Array, readUnknownFields: boolean): Decoded {
  const message = create(type);
  let steps = 0;
  try {
    for (const _ of decodeInParts(type, message, bytes, readUnknownFields)) {
      steps += 1;
    }
  } catch {
    return { fault: true };
  }
  return { message, steps };
}

function atOnce(type: DescMessage, bytes: Uint8Array, readUnknownFields: boolean): Decoded {
  try {
    return { message: fromBinary(type, bytes, { readUnknownFields }), steps: 0 };
  } catch {
    return { fault: true };
  }
}

const isSame = (one: Decoded, other: Decoded) =>
  "message" in one && "message" in other
    ? isDeepStrictEqual(one.message, other.message)
    : "fault" in one && "fault" in other;

t.test("whatever a message is, its parts make the same of it", async (t) => {
  const random = createRandom(13);
  let steps = 0;
  for (let round = 0; round < 600; round++) {
    const type = random.pick(TYPES);
    const bytes = encoded(type, random, 0);
    const keepsUnknown = random.oneIn(2);
    const parts = inParts(type, bytes, keepsUnknown);
    steps += "steps" in parts ? parts.steps : 0;
    if (!("message" in parts) || !isSame(parts, atOnce(type, bytes, keepsUnknown))) {
      t.fail(`${type.typeName}, round ${round}, ${bytes.length} bytes`);
    }
  }
  t.ok(steps > 300, `it took ${steps} steps`);
});

t.test("what is no message is none in parts either; some that no encoder writes are none", async (t) => {
  const random = createRandom(14);
  let faults = 0;
  for (let round = 0; round < 600; round++) {
    const type = random.pick(TYPES);
    const bytes = mutateBytes(Buffer.concat([encoded(type, random, 0), Buffer.from([0])]), random);
    const expected = atOnce(type, bytes, true);
    faults += "fault" in expected ? 1 : 0;
    const parts = inParts(type, bytes, true);
    if (!("fault" in parts) && !isSame(parts, expected)) {
      t.fail(`${type.typeName}, round ${round}, ${"fault" in expected ? "a fault" : "none"} at once`);
    }
  }
  t.ok(faults > 300, `${faults} were none`);
});

t.test("no step decodes much, wherever in the message it lies", async (t) => {
  const many = 20_000;
  const announce = create(AnnounceRequestSchema, { holdings: { holdings: Array.from({ length: many }, () => ({})) } });
  const bytes = toBinary(AnnounceRequestSchema, announce);
  const target = create(AnnounceRequestSchema);
  let before = 0;
  let most = 0;
  for (const _ of decodeInParts(AnnounceRequestSchema, target, bytes, true)) {
    const now = target.holdings?.holdings.length ?? 0;
    most = Math.max(most, now - before);
    before = now;
  }
  t.equal(target.holdings?.holdings.length, many);
  t.ok(most <= 1024, `at most ${most} in a step`);
});

t.test("nothing that protobuf-es reads otherwise than it looks goes past the count and the parts", async (t) => {
  const holdings = toBinary(
    AnnounceRequestSchema,
    create(AnnounceRequestSchema, { holdings: { holdings: Array.from({ length: 150_000 }, () => ({})) } }),
  );
  const ttl = AnnounceRequestSchema.fields.find(({ name }) => name === "ttl_ms")?.number ?? 0;
  const fronts = {
    "a length beyond 32 bits": Buffer.from([0x7a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]),
    "a number in the place of a message": Buffer.from([(ttl << 3) | 2, 0x80, 0x80, 0x20]),
    "a number beyond 64 bits": Buffer.from([0x78, ...Array.from({ length: 11 }, () => 0x80), 0]),
    "a group": Buffer.from([0x7b, 0x7c]),
  };
  t.not(ttl, 0);
  for (const [name, front] of Object.entries(fronts)) {
    const bytes = Buffer.concat([front, holdings]);
    t.throws(() => checkMessageValues(AnnounceRequestSchema, bytes), name);
    t.match(inParts(AnnounceRequestSchema, bytes, true), { fault: true }, name);
  }
  t.throws(() => checkMessageValues(AnnounceRequestSchema, holdings), /more than 100000 values/);
});

t.test("the entries of maps count with all that they have", async (t) => {
  const entry = new BinaryWriter();
  for (let i = 0; i < 110_000; i++) {
    entry.tag(1, WireType.LengthDelimited).string("");
  }
  const topology = WorkerMetadataSchema.fields.find(({ name }) => name === "topology")?.number ?? 0;
  const worker = new BinaryWriter().tag(topology, WireType.LengthDelimited).bytes(entry.finish()).finish();
  t.throws(() => checkMessageValues(WorkerMetadataSchema, worker), /more than 100000 values/);
});
