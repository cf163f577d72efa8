import { ConnectionFault } from "./connection-fault.ts";
import { FLAG, FRAME, REASON } from "./frames.ts";

/** A header block as it came, whole. */
export interface HeaderBlock {
  stream: number;
  /** Its request ends with it. */
  isEnd: boolean;
  bytes: Buffer;
}

/** Of a block as it comes: more than a list may have that is sent with sense. */
const BLOCK_MAX_BYTES = 81_920;
const PIECES_MAX_COUNT = 64;
const PRIORITY_BYTES = 5;

/** A frame's payload without its padding (RFC 9113, sections 6.1 and 6.2). */
export function withoutPadding(flags: number, payload: Buffer): Buffer {
  if ((flags & FLAG.padded) === 0) {
    return payload;
  }
  const paddingBytes = payload[0] ?? 0;
  if (paddingBytes >= payload.length) {
    throw new ConnectionFault(REASON.protocolError, "padding is as long as its frame");
  }
  return payload.subarray(1, payload.length - paddingBytes);
}

/** Puts header blocks together of HEADERS and CONTINUATION frames (RFC 9113, section 4.3). */
export class HeaderBlocks {
  #coming: { stream: number; isEnd: boolean; pieces: Buffer[]; bytesCount: number } | undefined;

  /** Throws when a block is coming and this frame is no part of it. */
  expect(type: number, stream: number): void {
    if (this.#coming !== undefined && (type !== FRAME.continuation || stream !== this.#coming.stream)) {
      throw new ConnectionFault(REASON.protocolError, "a header block is interrupted");
    }
  }

  /** A HEADERS frame; gives the block if that is all of it. */
  begin(flags: number, stream: number, payload: Buffer): HeaderBlock | undefined {
    let bytes = withoutPadding(flags, payload);
    if ((flags & FLAG.priority) !== 0) {
      if (bytes.length < PRIORITY_BYTES) {
        throw new ConnectionFault(REASON.frameSizeError, "HEADERS are too short for their priority");
      }
      bytes = bytes.subarray(PRIORITY_BYTES);
    }
    const isEnd = (flags & FLAG.endStream) !== 0;
    if ((flags & FLAG.endHeaders) !== 0) {
      return { stream, isEnd, bytes };
    }
    this.#coming = { stream, isEnd, pieces: [Buffer.from(bytes)], bytesCount: bytes.length };
    return undefined;
  }

  /** A CONTINUATION frame; gives the block if it is whole now. */
  goOn(flags: number, payload: Buffer): HeaderBlock | undefined {
    const coming = this.#coming;
    if (coming === undefined) {
      throw new ConnectionFault(REASON.protocolError, "CONTINUATION follows no HEADERS");
    }
    coming.pieces.push(Buffer.from(payload));
    coming.bytesCount += payload.length;
    if (coming.bytesCount > BLOCK_MAX_BYTES || coming.pieces.length > PIECES_MAX_COUNT) {
      throw new ConnectionFault(REASON.enhanceYourCalm, "a header block is too long");
    }
    if ((flags & FLAG.endHeaders) === 0) {
      return undefined;
    }
    this.#coming = undefined;
    return { stream: coming.stream, isEnd: coming.isEnd, bytes: Buffer.concat(coming.pieces) };
  }
}
