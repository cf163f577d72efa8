/** How a field's value is encoded (protobuf.dev, Encoding). */
export const WireType = { varint: 0, fixed64: 1, lengthDelimited: 2, startGroup: 3, endGroup: 4, fixed32: 5 } as const;

const FIXED64_BYTES = 8;
const FIXED32_BYTES = 4;
const VARINT_MAX_BYTES = 10;

/** Goes over an encoded message without decoding it. Beyond the end all is 0: who uses it looks where it is. */
export class WireCursor {
  readonly #bytes: Uint8Array;
  at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** Infinity for what is no varint. */
  varint(): number {
    const first = this.#bytes[this.at++] ?? 0;
    if (first < 0x80) {
      return first;
    }
    let value = first & 0x7f;
    for (let i = 1; i < VARINT_MAX_BYTES; i++) {
      const byte = this.#bytes[this.at++] ?? 0;
      value += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) {
        return value;
      }
    }
    return Number.POSITIVE_INFINITY;
  }

  tag(): { number: number; wireType: number } {
    const tag = this.varint();
    return { number: Math.floor(tag / 8), wireType: tag % 8 };
  }

  /** Goes over a value that says nothing of its length, or has none. */
  skip(wireType: number): void {
    if (wireType === WireType.varint) {
      this.varint();
    } else if (wireType === WireType.fixed64) {
      this.at += FIXED64_BYTES;
    } else if (wireType === WireType.fixed32) {
      this.at += FIXED32_BYTES;
    }
  }
}
