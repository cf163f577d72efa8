import { WireType } from "@bufbuild/protobuf/wire";

const FIXED64_BYTES = 8;
const FIXED32_BYTES = 4;
const VARINT_MAX_BYTES = 10;
const UINT32_MAX_BYTES = 5;

/**
 * Goes over an encoded message without decoding it. Throws for what no encoder writes, also where a decoder would make
 * something of it: what is looked at here must be what is decoded then. Groups, which proto3 does not have, are refused.
 */
export class WireCursor {
  readonly #bytes: Uint8Array;
  /** Where the message that is gone over ends. */
  readonly end: number;
  at: number;

  constructor(bytes: Uint8Array, from = 0, end = bytes.length) {
    this.#bytes = bytes;
    this.at = from;
    this.end = end;
  }

  /** A number of 32 bits, as tags and lengths are. */
  #uint32(): number {
    const first = this.#bytes[this.at++] ?? 0;
    if (first < 0x80) {
      return first;
    }
    let value = first & 0x7f;
    for (let i = 1; i < UINT32_MAX_BYTES; i++) {
      const byte = this.#bytes[this.at++] ?? 0;
      value += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) {
        return value < 2 ** 32 ? value : wrong("a number beyond 32 bits");
      }
    }
    return wrong("a number beyond 32 bits");
  }

  #skipVarint(): void {
    for (let i = 0; i < VARINT_MAX_BYTES; i++) {
      if ((this.#bytes[this.at++] ?? 0) < 0x80) {
        return;
      }
    }
    wrong("a number beyond 64 bits");
  }

  tag(): { number: number; wireType: number } {
    const tag = this.#uint32();
    return { number: tag >>> 3, wireType: tag & 7 };
  }

  /** Goes over a value. Gives where its content begins; it ends where the cursor is then. */
  skip(wireType: number): number {
    let contentFrom = this.at;
    if (wireType === WireType.Varint) {
      this.#skipVarint();
    } else if (wireType === WireType.Bit64) {
      this.at += FIXED64_BYTES;
    } else if (wireType === WireType.Bit32) {
      this.at += FIXED32_BYTES;
    } else if (wireType === WireType.LengthDelimited) {
      const bytes = this.#uint32();
      contentFrom = this.at;
      this.at += bytes;
    } else {
      wrong(`wire type ${wireType}`);
    }
    if (this.at > this.end) {
      wrong("a value that is longer than the message");
    }
    return contentFrom;
  }
}

function wrong(what: string): never {
  throw new Error(`it has ${what}`);
}
