import { type DescField, type DescMessage, fromBinary, type MessageShape, ScalarType } from "@bufbuild/protobuf";
import { WeightlineError } from "../error.ts";
import { MESSAGE_VALUES_MAX_COUNT, UNKNOWN_VALUES_MAX_COUNT } from "./server-limits.ts";

/** Bytes of the wire types that have a fixed size. */
const FIXED_BYTES: Readonly<Partial<Record<number, number>>> = { 1: 8, 5: 4 };
/** A tag, and a varint or a length. */
const VALUE_MIN_BYTES = 2;
const VARINT = 0;
const LENGTH_DELIMITED = 2;
const VARINT_MAX_BYTES = 10;
/** The decoder's own. */
const DEPTH_MAX = 100;

const fieldsByNumber = new WeakMap<DescMessage, Map<number, DescField>>();

function fieldOf(type: DescMessage, number: number): DescField | undefined {
  let fields = fieldsByNumber.get(type);
  if (fields === undefined) {
    fields = new Map(type.fields.map((field) => [field.number, field]));
    fieldsByNumber.set(type, fields);
  }
  return fields.get(number);
}

/** Bytes of one value of a packed list; 0 for fields that are not packed. */
function packedBytes(field: DescField | undefined): number {
  if (field?.fieldKind !== "list" || field.listKind === "message") {
    return 0;
  }
  switch (field.listKind === "enum" ? ScalarType.INT32 : field.scalar) {
    case ScalarType.STRING:
    case ScalarType.BYTES:
      return 0;
    case ScalarType.DOUBLE:
    case ScalarType.FIXED64:
    case ScalarType.SFIXED64:
      return 8;
    case ScalarType.FLOAT:
    case ScalarType.FIXED32:
    case ScalarType.SFIXED32:
      return 4;
    default:
      return 1;
  }
}

/** Counts the values of an encoded message, until `left` of them are found or it is no message. */
class ValueCount {
  left: number;
  /** Those of fields that the type does not have. */
  unknown = 0;
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array, limit: number) {
    this.#bytes = bytes;
    this.left = limit;
  }

  #varint(): number {
    let value = 0;
    for (let i = 0; i < VARINT_MAX_BYTES; i++) {
      const byte = this.#bytes[this.#at++] ?? 0;
      value += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) {
        return value;
      }
    }
    return Number.POSITIVE_INFINITY;
  }

  take(type: DescMessage, end: number, depth: number): void {
    while (this.#at < end && this.left > 0) {
      const tag = this.#varint();
      this.left -= 1;
      const wireType = tag & 7;
      const field = fieldOf(type, Math.floor(tag / 8));
      this.unknown += field === undefined ? 1 : 0;
      if (wireType === VARINT) {
        this.#varint();
      } else if (wireType === LENGTH_DELIMITED) {
        this.#takeLength(field, end, depth);
      } else {
        this.#at += FIXED_BYTES[wireType] ?? 0;
      }
    }
  }

  #takeLength(field: DescField | undefined, end: number, depth: number): void {
    const bytes = this.#varint();
    const next = Math.min(end, this.#at + bytes);
    const width = packedBytes(field);
    if (width > 0) {
      this.left -= Math.ceil((next - this.#at) / width);
    } else if (field?.fieldKind !== "map" && field?.message !== undefined && depth < DEPTH_MAX) {
      this.take(field.message, next, depth + 1);
    }
    this.#at = Math.max(this.#at, next);
  }
}

/**
 * Throws ResourceExhausted for an encoded message of more than MESSAGE_VALUES_MAX_COUNT values, before it is decoded: two
 * bytes of it can become hundreds in memory. Bytes that are no message are left to the decoder. Returns how many values of
 * fields that the type does not have were found; 0 for a message too short to have many.
 */
export function checkMessageValues(type: DescMessage, bytes: Uint8Array): number {
  if (bytes.length <= UNKNOWN_VALUES_MAX_COUNT * VALUE_MIN_BYTES) {
    return 0;
  }
  const count = new ValueCount(bytes, MESSAGE_VALUES_MAX_COUNT + 1);
  count.take(type, bytes.length, 0);
  if (count.left <= 0) {
    throw new WeightlineError(
      "ResourceExhausted",
      `the request is a ${type.typeName} of more than ${MESSAGE_VALUES_MAX_COUNT} values`,
      { field: "request", value: `${bytes.length} bytes`, limit: `${MESSAGE_VALUES_MAX_COUNT} values` },
    );
  }
  return count.unknown;
}

/**
 * Decodes a request whose values are not too many, as checkMessageValues. What is not understood is kept, so that it is
 * passed on; not of a message that has more than UNKNOWN_VALUES_MAX_COUNT of that: to keep it takes five times as long as to
 * read it, and everybody waits.
 */
export function decodeRequest<Type extends DescMessage>(type: Type, bytes: Uint8Array): MessageShape<Type> {
  const unknown = checkMessageValues(type, bytes);
  return fromBinary(type, bytes, { readUnknownFields: unknown <= UNKNOWN_VALUES_MAX_COUNT });
}
