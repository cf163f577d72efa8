import type { DescField, DescMessage, MessageShape } from "@bufbuild/protobuf";
import { WireType } from "@bufbuild/protobuf/wire";
import { WeightlineError } from "../error.ts";
import { DEPTH_MAX, fieldOf, isEncodedAs, wireTypeOf } from "./message-fields.ts";
import { decodeInParts } from "./message-parts.ts";
import { MESSAGE_VALUES_MAX_COUNT, UNKNOWN_VALUES_MAX_COUNT } from "./server-limits.ts";
import { WireCursor } from "./wire-cursor.ts";

/** A tag, and a varint or a length. */
const VALUE_MIN_BYTES = 2;
/** A shorter request cannot have much in it. */
const AT_ONCE_MAX_BYTES = 4096;
/** How long a step of a decoding may keep everybody waiting, in ms. */
const STEP_MS = 0.5;

/** The number of an entry's value. */
const MAP_VALUE = 2;
/** The least bytes of one value of a packed list, by how it is encoded. */
const PACKED_BYTES: Readonly<Partial<Record<number, number>>> = {
  [WireType.Varint]: 1,
  [WireType.Bit64]: 8,
  [WireType.Bit32]: 4,
};

/** Counts the values of an encoded message, until `left` of them are found. */
class ValueCount {
  left: number;
  /** Those of fields that the type does not have. */
  unknown = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array, limit: number) {
    this.#bytes = bytes;
    this.left = limit;
  }

  take(type: DescMessage, from: number, end: number, depth: number): void {
    const cursor = new WireCursor(this.#bytes, from, end);
    while (cursor.at < end && this.left > 0) {
      const { number, wireType } = cursor.tag();
      const contentFrom = cursor.skip(wireType);
      this.left -= 1;
      const field = fieldOf(type, number);
      if (field === undefined) {
        this.unknown += 1;
      } else if (!isEncodedAs(field, wireType)) {
        throw new Error(`its field ${number} is not encoded as its type is`);
      } else if (wireType === WireType.LengthDelimited && depth < DEPTH_MAX) {
        this.#takeContent(field, contentFrom, cursor.at, depth);
      }
    }
  }

  #takeContent(field: DescField, from: number, end: number, depth: number): void {
    const packedBytes = PACKED_BYTES[wireTypeOf(field)];
    if (packedBytes !== undefined) {
      this.left -= Math.ceil((end - from) / packedBytes);
    } else if (field.fieldKind === "map") {
      this.#takeEntry(field.message, from, end, depth);
    } else if (field.message !== undefined) {
      this.take(field.message, from, end, depth + 1);
    }
  }

  /** An entry of a map is a message too, which may have its key and its value as often as it likes. */
  #takeEntry(values: DescMessage | undefined, from: number, end: number, depth: number): void {
    const cursor = new WireCursor(this.#bytes, from, end);
    while (cursor.at < end && this.left > 0) {
      const { number, wireType } = cursor.tag();
      const contentFrom = cursor.skip(wireType);
      this.left -= 1;
      if (number === MAP_VALUE && values !== undefined && wireType === WireType.LengthDelimited) {
        this.take(values, contentFrom, cursor.at, depth + 1);
      }
    }
  }
}

/**
 * Throws ResourceExhausted for an encoded message of more than MESSAGE_VALUES_MAX_COUNT values, before it is decoded: two
 * bytes of it can become hundreds in memory; and an Error for one that no encoder writes. Returns how many values of fields
 * that the type does not have were found; 0 for a message too short to have many.
 */
export function checkMessageValues(type: DescMessage, bytes: Uint8Array): number {
  if (bytes.length <= UNKNOWN_VALUES_MAX_COUNT * VALUE_MIN_BYTES) {
    return 0;
  }
  const count = new ValueCount(bytes, MESSAGE_VALUES_MAX_COUNT + 1);
  count.take(type, 0, bytes.length, 0);
  if (count.left <= 0) {
    throw new WeightlineError(
      "ResourceExhausted",
      `the request is a ${type.typeName} of more than ${MESSAGE_VALUES_MAX_COUNT} values`,
      { field: "request", value: `${bytes.length} bytes`, limit: `${MESSAGE_VALUES_MAX_COUNT} values` },
    );
  }
  return count.unknown;
}

/** Whether a request may have so much in it that it is decoded in steps. */
export function isLong(bytes: Uint8Array): boolean {
  return bytes.length > AT_ONCE_MAX_BYTES;
}

/**
 * The steps of decoding a long request into `message`, each of half a millisecond or a little more. Throws as
 * checkMessageValues and protobuf-es do. What is not understood is kept, so that it is passed on; not of a message that has
 * more than UNKNOWN_VALUES_MAX_COUNT of that: to keep it takes five times as long as to read it.
 */
export function* decodingSteps<Type extends DescMessage>(
  type: Type,
  message: MessageShape<Type>,
  bytes: Uint8Array,
): Generator<undefined, void> {
  const readUnknownFields = checkMessageValues(type, bytes) <= UNKNOWN_VALUES_MAX_COUNT;
  let until = performance.now() + STEP_MS;
  for (const _ of decodeInParts(type, message, bytes, readUnknownFields)) {
    if (performance.now() >= until) {
      yield;
      until = performance.now() + STEP_MS;
    }
  }
}
