/** HTTP/2's frames, as RFC 9113 (sections 4, 6 and 7) numbers them. */
export const FRAME = {
  data: 0,
  headers: 1,
  priority: 2,
  reset: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;

export const FLAG = { ack: 0x1, endStream: 0x1, endHeaders: 0x4, padded: 0x8, priority: 0x20 } as const;

export const SETTING = {
  headerTableSize: 1,
  enablePush: 2,
  maxConcurrentStreams: 3,
  initialWindowSize: 4,
  maxFrameSize: 5,
  maxHeaderListSize: 6,
} as const;

/** Why a stream or a connection ends. */
export const REASON = {
  noError: 0,
  protocolError: 1,
  internalError: 2,
  flowControlError: 3,
  streamClosed: 5,
  frameSizeError: 6,
  refusedStream: 7,
  cancel: 8,
  compressionError: 9,
  enhanceYourCalm: 11,
} as const;
export type Reason = (typeof REASON)[keyof typeof REASON];

export const PREFACE: Buffer = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");
export const FRAME_HEAD_BYTES = 9;
/** What both sides may send in one frame's payload unless they say otherwise. */
export const FRAME_PAYLOAD_BYTES = 16_384;
export const FRAME_PAYLOAD_MAX_BYTES = 2 ** 24 - 1;
/** What may be sent on a connection and on a stream before anything is said of windows. */
export const FIRST_WINDOW_BYTES = 65_535;
export const WINDOW_MAX_BYTES = 2 ** 31 - 1;

/** Writes a frame's nine bytes. */
export function writeFrameHead(
  into: Buffer,
  at: number,
  payloadBytes: number,
  type: number,
  flags: number,
  stream: number,
): void {
  into[at] = payloadBytes >>> 16;
  into[at + 1] = payloadBytes >>> 8;
  into[at + 2] = payloadBytes;
  into[at + 3] = type;
  into[at + 4] = flags;
  into[at + 5] = stream >>> 24;
  into[at + 6] = stream >>> 16;
  into[at + 7] = stream >>> 8;
  into[at + 8] = stream;
}

/** A whole frame. */
export function frame(type: number, flags: number, stream: number, payload: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(FRAME_HEAD_BYTES + payload.length);
  writeFrameHead(bytes, 0, payload.length, type, flags, stream);
  bytes.set(payload, FRAME_HEAD_BYTES);
  return bytes;
}

/** A frame whose payload is numbers of 32 bits. */
export function frameOfNumbers(type: number, flags: number, stream: number, ...numbers: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(FRAME_HEAD_BYTES + 4 * numbers.length);
  writeFrameHead(bytes, 0, 4 * numbers.length, type, flags, stream);
  for (const [i, number] of numbers.entries()) {
    bytes.writeUInt32BE(number, FRAME_HEAD_BYTES + 4 * i);
  }
  return bytes;
}

/** A SETTINGS frame of identifiers and values. */
export function settingsFrame(values: ReadonlyArray<readonly [identifier: number, value: number]>): Buffer {
  const payload = Buffer.alloc(6 * values.length);
  for (const [i, [identifier, value]] of values.entries()) {
    payload.writeUInt16BE(identifier, 6 * i);
    payload.writeUInt32BE(value, 6 * i + 2);
  }
  return frame(FRAME.settings, 0, 0, payload);
}

/** Of a HEADERS frame that opens or ends a stream; a block that is too long for one frame goes on in CONTINUATIONs. */
export function headerFrames(stream: number, block: Uint8Array, isEnd: boolean): Buffer {
  const endFlag = isEnd ? FLAG.endStream : 0;
  if (block.length <= FRAME_PAYLOAD_BYTES) {
    return frame(FRAME.headers, endFlag | FLAG.endHeaders, stream, block);
  }
  const frames: Buffer[] = [];
  for (let at = 0; at < block.length; at += FRAME_PAYLOAD_BYTES) {
    const isLast = at + FRAME_PAYLOAD_BYTES >= block.length;
    frames.push(
      frame(
        at === 0 ? FRAME.headers : FRAME.continuation,
        (at === 0 ? endFlag : 0) | (isLast ? FLAG.endHeaders : 0),
        stream,
        block.subarray(at, at + FRAME_PAYLOAD_BYTES),
      ),
    );
  }
  return Buffer.concat(frames);
}
