import { BinaryReader } from "@bufbuild/protobuf/wire";

/** Bytes of a protobuf varint of a whole number from 0 to 2^53 - 1. */
export function varintBytes(value: number): number {
  let bytes = 1;
  for (let rest = value; rest >= 128; rest = Math.floor(rest / 128)) {
    bytes++;
  }
  return bytes;
}

/** Writes a whole number from 0 to 2^53 - 1 as a protobuf varint and returns the position after it. */
export function writeVarint(target: Uint8Array, position: number, value: number): number {
  let rest = value;
  let at = position;
  // Above 32 bits the bit operators would cut the number.
  while (rest >= 0x8000_0000) {
    target[at++] = (rest % 128) + 128;
    rest = Math.floor(rest / 128);
  }
  while (rest >= 128) {
    target[at++] = (rest & 127) | 128;
    rest >>>= 7;
  }
  target[at++] = rest;
  return at;
}

/** A message's bytes without the fields of these numbers; the others stay as they are, in their order. */
export function withoutFields(message: Uint8Array, numbers: ReadonlySet<number>): Uint8Array {
  const reader = new BinaryReader(message);
  const kept: Uint8Array[] = [];
  let keptFrom = 0;
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const [number, wireType] = reader.tag();
    reader.skip(wireType, number);
    if (numbers.has(number)) {
      kept.push(message.subarray(keptFrom, start));
      keptFrom = reader.pos;
    }
  }
  if (kept.length === 0) {
    return message;
  }
  kept.push(message.subarray(keptFrom));
  return Buffer.concat(kept);
}

/** How many bytes the fields of these numbers have in a message. */
export function bytesOfFields(message: Uint8Array, numbers: ReadonlySet<number>): number {
  const reader = new BinaryReader(message);
  let bytes = 0;
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const [number, wireType] = reader.tag();
    reader.skip(wireType, number);
    bytes += numbers.has(number) ? reader.pos - start : 0;
  }
  return bytes;
}

/** Bytes as a string of one byte a character: it keeps no more than they are, and nothing of the buffer they came in. */
export function byteString(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
}
