import { STATIC_NAMES, type StaticName } from "./static-table.ts";

/** What an instruction begins with (RFC 7541, section 6), and the bits that are left for its integer. */
const INDEXED = 0x80;
const INDEXED_MASK = 0x7f;
/** Without indexing. */
const LITERAL = 0x00;
const LITERAL_MASK = 0x0f;
/** Of a string without Huffman's code. */
const LENGTH_MASK = 0x7f;
const CONTINUES = 0x80;
const CONTINUATION_MASK = 0x7f;
const CONTINUATION_BITS = 7;
/** Of an integer of 31 bits in the least prefix. */
const INTEGER_MAX_BYTES = 6;
/** A field's index or mark, and the lengths of its name and value. */
const FIELD_INTEGERS_COUNT = 3;
/** Up to here a loop is faster than a call of Node's. */
const SHORT_STRING_LENGTH = 48;

/**
 * The header block of these fields (RFC 7541), which leaves the client's dynamic table alone: blocks may go in any order and
 * more than once. Names are in lower case; names and values have no characters above U+00FF, of which half would be lost.
 */
export function encodeHeaders(fields: readonly (readonly [name: string, value: string])[]): Buffer {
  let maxBytes = 0;
  for (const [name, value] of fields) {
    maxBytes += name.length + value.length + FIELD_INTEGERS_COUNT * INTEGER_MAX_BYTES;
  }
  const block = Buffer.allocUnsafe(maxBytes);
  let at = 0;
  for (const [name, value] of fields) {
    const known = STATIC_NAMES.get(name);
    const index = known?.values.get(value);
    at =
      index === undefined
        ? putLiteral(block, at, known, name, value)
        : putInteger(block, at, INDEXED, INDEXED_MASK, index);
  }
  return block.subarray(0, at);
}

function putLiteral(block: Buffer, at: number, known: StaticName | undefined, name: string, value: string): number {
  const afterMark = putInteger(block, at, LITERAL, LITERAL_MASK, known?.index ?? 0);
  const afterName = known === undefined ? putString(block, afterMark, name) : afterMark;
  return putString(block, afterName, value);
}

function putString(block: Buffer, at: number, string: string): number {
  const from = putInteger(block, at, LITERAL, LENGTH_MASK, string.length);
  if (string.length > SHORT_STRING_LENGTH) {
    return from + block.write(string, from, "latin1");
  }
  for (let i = 0; i < string.length; i++) {
    block[from + i] = string.charCodeAt(i);
  }
  return from + string.length;
}

/** Puts an integer after the mark's bits (RFC 7541, section 5.1); gives where it ends. */
function putInteger(block: Buffer, at: number, mark: number, mask: number, integer: number): number {
  if (integer < mask) {
    block[at] = mark | integer;
    return at + 1;
  }
  block[at++] = mark | mask;
  let rest = integer - mask;
  while (rest > CONTINUATION_MASK) {
    block[at++] = CONTINUES | (rest & CONTINUATION_MASK);
    rest >>>= CONTINUATION_BITS;
  }
  block[at] = rest;
  return at + 1;
}
