import {
  create,
  type DescField,
  type DescMessage,
  fromBinary,
  type MessageShape,
  ScalarType,
} from "@bufbuild/protobuf";
import { WeightlineError } from "../error.ts";
import { DEPTH_MAX, fieldOf } from "./message-fields.ts";
import { decodeInParts } from "./message-parts.ts";
import { MESSAGE_VALUES_MAX_COUNT, UNKNOWN_VALUES_MAX_COUNT } from "./server-limits.ts";
import { WireCursor, WireType } from "./wire-cursor.ts";

/** A tag, and a varint or a length. */
const VALUE_MIN_BYTES = 2;
/** A shorter request cannot have much in it. */
const AT_ONCE_MAX_BYTES = 4096;
/** How long a step of a decoding may keep everybody waiting, in ms. */
const STEP_MS = 0.5;

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
  readonly #cursor: WireCursor;

  constructor(bytes: Uint8Array, limit: number) {
    this.#cursor = new WireCursor(bytes);
    this.left = limit;
  }

  take(type: DescMessage, end: number, depth: number): void {
    const cursor = this.#cursor;
    while (cursor.at < end && this.left > 0) {
      const { number, wireType } = cursor.tag();
      this.left -= 1;
      const field = fieldOf(type, number);
      this.unknown += field === undefined ? 1 : 0;
      if (wireType === WireType.lengthDelimited) {
        this.#takeLength(field, end, depth);
      } else {
        cursor.skip(wireType);
      }
    }
  }

  #takeLength(field: DescField | undefined, end: number, depth: number): void {
    const cursor = this.#cursor;
    const bytes = cursor.varint();
    const next = Math.min(end, cursor.at + bytes);
    const width = packedBytes(field);
    if (width > 0) {
      this.left -= Math.ceil((next - cursor.at) / width);
    } else if (field?.fieldKind !== "map" && field?.message !== undefined && depth < DEPTH_MAX) {
      this.take(field.message, next, depth + 1);
    }
    cursor.at = Math.max(cursor.at, next);
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
 * read it. One that has much is decoded in steps, `pause` between them.
 */
export function decodeRequest<Type extends DescMessage>(
  type: Type,
  bytes: Uint8Array,
  pause: () => Promise<void>,
): MessageShape<Type> | Promise<MessageShape<Type>> {
  if (bytes.length <= AT_ONCE_MAX_BYTES) {
    return fromBinary(type, bytes);
  }
  const readUnknownFields = checkMessageValues(type, bytes) <= UNKNOWN_VALUES_MAX_COUNT;
  return decodeInSteps(type, bytes, readUnknownFields, pause);
}

async function decodeInSteps<Type extends DescMessage>(
  type: Type,
  bytes: Uint8Array,
  readUnknownFields: boolean,
  pause: () => Promise<void>,
): Promise<MessageShape<Type>> {
  const message = create(type) as MessageShape<Type>;
  let until = performance.now() + STEP_MS;
  for (const _ of decodeInParts(type, message, bytes, readUnknownFields)) {
    if (performance.now() >= until) {
      await pause();
      until = performance.now() + STEP_MS;
    }
  }
  return message;
}
