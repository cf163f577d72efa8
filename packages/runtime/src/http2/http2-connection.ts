import type { Socket } from "node:net";
import {
  FIRST_WINDOW_BYTES,
  FLAG,
  FRAME,
  FRAME_HEAD_BYTES,
  FRAME_PAYLOAD_BYTES,
  FRAME_PAYLOAD_MAX_BYTES,
  frame,
  frameOfNumbers,
  PREFACE,
  REASON,
  type Reason,
  SETTING,
  settingsFrame,
  WINDOW_MAX_BYTES,
  writeFrameHead,
} from "./frames.ts";
import { HeaderBlockError, HeaderDecoder, type HeaderList } from "./header-decoder.ts";
import { Http2Stream, type StreamConnection, type StreamTaker } from "./http2-stream.ts";
import { ResetGauge } from "./reset-gauge.ts";

/** What one connection may take. */
export interface Http2Limits {
  /** Requests that run at once. */
  streamsCount: number;
  /** Of a request's headers: bytes as HTTP/2 counts them, and pairs. */
  headerListBytes: number;
  headerPairsCount: number;
  /** Streams that may be reset in one go, and then in a second. */
  resetBurstCount: number;
  resetsPerS: number;
}

export interface Http2ConnectionOptions {
  /** Ready for HTTP/2: plain, or the TLS on it. Its connection's from now on. */
  socket: Socket;
  limits: Http2Limits;
  /** A request has come, perhaps without its body; undefined when the stream was ended here. */
  onRequest: (stream: Http2Stream, headers: HeaderList) => StreamTaker | undefined;
}

/** HPACK's own: what a client's encoder may keep here. */
const HEADER_TABLE_BYTES = 4096;
/** Of a header block as it comes, with all that Huffman's code may add. */
const HEADER_BLOCK_MAX_BYTES = 131_072;
const CONTINUATIONS_MAX_COUNT = 64;
/** Bytes that the socket keeps at most before streams wait. */
const SOCKET_AHEAD_BYTES = 131_072;
/** Answers to a client that asks, and does not read: acknowledgements and refusals. */
const ANSWERS_MAX_BYTES = 1_048_576;
/** Below, one write of one piece costs less than one of many. */
const JOIN_MAX_BYTES = 65_536;
const PRIORITY_BYTES = 5;
const NO_BYTES = Buffer.alloc(0);
/** HPACK's update of the table's size, to 0: a client that allows none must read it before the first header. */
const NO_TABLE = Buffer.from([0x20]);

/** The client broke the protocol: its connection ends. */
class ConnectionFault extends Error {
  readonly reason: Reason;
  constructor(reason: Reason, message: string) {
    super(message);
    this.reason = reason;
  }
}

/**
 * The server's side of one HTTP/2 connection (RFC 9113): frames become requests, replies become frames. It makes nothing for
 * a request but its stream and its headers, which is why it exists: node:http2 needs four times as long for a call.
 */
export class Http2Connection implements StreamConnection {
  readonly #socket: Socket;
  readonly #limits: Http2Limits;
  readonly #onRequest: Http2ConnectionOptions["onRequest"];
  readonly #headers: HeaderDecoder;
  readonly #resets: ResetGauge;
  /** Those that are open: few, so that a list is found through as fast as a table. */
  readonly #streams: Http2Stream[] = [];
  /** Those with bytes that may be sent, in turn. */
  readonly #waiting: Http2Stream[] = [];
  #rest: Buffer = NO_BYTES;
  #greeted = false;
  #lastStream = 0;
  /** The header block that is coming: of which stream, and whether its request ends with it. */
  #block: { stream: number; isEnd: boolean; pieces: Buffer[]; bytes: number } | undefined;
  #receiveTaken = 0;
  #sendWindow = FIRST_WINDOW_BYTES;
  /** What the client allows each new stream, and each frame. */
  #firstSendWindow = FIRST_WINDOW_BYTES;
  #framePayloadBytes = FRAME_PAYLOAD_BYTES;
  #ourSettingsHold = false;
  #saidNoTable = false;
  #out: Uint8Array[] = [];
  #outBytes = 0;
  #isReading = false;
  #flushes = false;
  /** Asked to go: no new requests, and the end when the open ones are over. */
  #isGoing = false;
  #isOver = false;
  #pingedAtMs = performance.now();
  #waitsForPong = false;

  constructor({ socket, limits, onRequest }: Http2ConnectionOptions) {
    this.#socket = socket;
    this.#limits = limits;
    this.#onRequest = onRequest;
    this.#headers = new HeaderDecoder({
      tableBytes: HEADER_TABLE_BYTES,
      listBytes: limits.headerListBytes,
      pairsCount: limits.headerPairsCount,
    });
    this.#resets = new ResetGauge(limits.resetBurstCount, limits.resetsPerS);
    this.write(
      settingsFrame([
        [SETTING.maxConcurrentStreams, limits.streamsCount],
        [SETTING.maxHeaderListSize, limits.headerListBytes],
      ]),
    );
    socket.on("data", (piece: Buffer) => this.#take(piece));
    socket.on("drain", () => this.#pump());
    socket.on("end", () => this.#end());
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.#gone());
  }

  /** Requests that are open. */
  get streamsCount(): number {
    return this.#streams.length;
  }

  /** Tells the client to come again elsewhere, and ends when the open requests are over. */
  close(): void {
    if (this.#isGoing || this.#isOver) {
      return;
    }
    this.#isGoing = true;
    this.write(frameOfNumbers(FRAME.goaway, 0, 0, this.#lastStream, REASON.noError));
    this.#endIfIdle();
  }

  /** Asks for a sign of life when it is time to; a client that gave none in time is gone. */
  keepAlive(nowMs: number, intervalMs: number, timeoutMs: number): void {
    if (this.#isOver) {
      return;
    }
    if (this.#waitsForPong) {
      if (nowMs - this.#pingedAtMs > timeoutMs) {
        this.#socket.destroy();
      }
    } else if (nowMs - this.#pingedAtMs > intervalMs) {
      this.#waitsForPong = true;
      this.#pingedAtMs = nowMs;
      this.write(frame(FRAME.ping, 0, 0, Buffer.alloc(8)));
    }
  }

  // What streams ask.

  write(bytes: Uint8Array): void {
    if (this.#isOver) {
      return;
    }
    this.#out.push(bytes);
    this.#outBytes += bytes.length;
    if (!this.#isReading && !this.#flushes) {
      this.#flushes = true;
      // What other calls answer in this turn goes along.
      process.nextTick(() => this.#flush());
    }
  }

  headerBlock(block: Buffer): Buffer {
    if (this.#saidNoTable) {
      return block;
    }
    this.#saidNoTable = true;
    return Buffer.concat([NO_TABLE, block]);
  }

  mayWrite(bytes: number): boolean {
    return bytes <= this.#sendWindow && this.#waiting.length === 0 && !this.#isFull();
  }

  took(bytes: number): void {
    this.#sendWindow -= bytes;
  }

  wantToSend(stream: Http2Stream): void {
    if (!stream.isWaiting && stream.sendWindow > 0) {
      stream.isWaiting = true;
      this.#waiting.push(stream);
      if (!this.#isReading && !this.#flushes) {
        this.#flushes = true;
        process.nextTick(() => this.#flush());
      }
    }
  }

  streamDone(stream: Http2Stream, reason: Reason | undefined): void {
    const code = reason ?? (stream.isWhole ? undefined : REASON.noError);
    if (code !== undefined) {
      this.write(frameOfNumbers(FRAME.reset, 0, stream.id, code));
    }
    this.#forget(stream);
    this.#endIfIdle();
  }

  openWindow(stream: Http2Stream, bytes: number): void {
    this.write(frameOfNumbers(FRAME.windowUpdate, 0, stream.id, bytes));
  }

  // Reading.

  #take(piece: Buffer): void {
    if (this.#isOver) {
      return;
    }
    const bytes = this.#rest.length === 0 ? piece : Buffer.concat([this.#rest, piece]);
    this.#isReading = true;
    try {
      const at = this.#takeFrames(bytes);
      // A copy: a few bytes must not keep the whole piece.
      this.#rest = at === bytes.length ? NO_BYTES : Buffer.from(bytes.subarray(at));
    } catch (error) {
      if (!(error instanceof ConnectionFault) && !(error instanceof HeaderBlockError)) {
        throw error;
      }
      this.#fail(error instanceof ConnectionFault ? error.reason : REASON.compressionError);
    } finally {
      this.#isReading = false;
    }
    this.#flush();
    if (this.#socket.writableLength > SOCKET_AHEAD_BYTES + ANSWERS_MAX_BYTES) {
      this.#socket.destroy();
    }
  }

  /** Takes the whole frames; gives where the first one begins that is not. */
  #takeFrames(bytes: Buffer): number {
    let at = 0;
    if (!this.#greeted) {
      const seen = Math.min(bytes.length, PREFACE.length);
      if (PREFACE.compare(bytes, 0, seen, 0, seen) !== 0) {
        throw new ConnectionFault(REASON.protocolError, "no HTTP/2");
      }
      if (seen < PREFACE.length) {
        return 0;
      }
      this.#greeted = true;
      at = seen;
    }
    while (bytes.length - at >= FRAME_HEAD_BYTES && !this.#isOver) {
      const length = ((bytes[at] as number) << 16) | ((bytes[at + 1] as number) << 8) | (bytes[at + 2] as number);
      if (length > FRAME_PAYLOAD_BYTES) {
        throw new ConnectionFault(REASON.frameSizeError, "a frame is too long");
      }
      const end = at + FRAME_HEAD_BYTES + length;
      if (end > bytes.length) {
        break;
      }
      const stream = bytes.readUInt32BE(at + 5) & WINDOW_MAX_BYTES;
      this.#takeFrame(
        bytes[at + 3] as number,
        bytes[at + 4] as number,
        stream,
        bytes.subarray(at + FRAME_HEAD_BYTES, end),
      );
      at = end;
    }
    return at;
  }

  #takeFrame(type: number, flags: number, id: number, payload: Buffer): void {
    if (this.#block !== undefined && (type !== FRAME.continuation || id !== this.#block.stream)) {
      throw new ConnectionFault(REASON.protocolError, "a header block was interrupted");
    }
    switch (type) {
      case FRAME.data:
        return this.#takeData(flags, id, payload);
      case FRAME.headers:
        return this.#takeHeaders(flags, id, payload);
      case FRAME.continuation:
        return this.#takeContinuation(flags, payload);
      case FRAME.reset:
        return this.#takeReset(id, payload);
      case FRAME.settings:
        return this.#takeSettings(flags, id, payload);
      case FRAME.ping:
        return this.#takePing(flags, id, payload);
      case FRAME.windowUpdate:
        return this.#takeWindow(id, payload);
      case FRAME.pushPromise:
        throw new ConnectionFault(REASON.protocolError, "clients do not push");
      case FRAME.priority:
        if (payload.length !== PRIORITY_BYTES || id === 0) {
          throw new ConnectionFault(
            payload.length === PRIORITY_BYTES ? REASON.protocolError : REASON.frameSizeError,
            "PRIORITY",
          );
        }
        return;
      case FRAME.goaway:
        if (id !== 0 || payload.length < 8) {
          throw new ConnectionFault(id === 0 ? REASON.frameSizeError : REASON.protocolError, "GOAWAY");
        }
        return;
      default:
      // Extensions that are not known are passed over.
    }
  }

  #find(id: number): Http2Stream | undefined {
    for (const stream of this.#streams) {
      if (stream.id === id) {
        return stream;
      }
    }
    return undefined;
  }

  /** One of the client's, open or over; undefined when it is over. */
  #streamOf(id: number): Http2Stream | undefined {
    const stream = this.#find(id);
    if (stream === undefined && (id === 0 || id % 2 === 0 || (id > this.#lastStream && !this.#isGoing))) {
      throw new ConnectionFault(REASON.protocolError, `stream ${id} is not open`);
    }
    return stream;
  }

  static #withoutPadding(flags: number, payload: Buffer): Buffer {
    if ((flags & FLAG.padded) === 0) {
      return payload;
    }
    const padding = payload[0] ?? 0;
    if (payload.length === 0 || padding >= payload.length) {
      throw new ConnectionFault(REASON.protocolError, "padding is longer than its frame");
    }
    return payload.subarray(1, payload.length - padding);
  }

  #takeData(flags: number, id: number, payload: Buffer): void {
    const stream = this.#streamOf(id);
    // All of it counts, and is given back: what streams keep is limited for all connections of an address.
    this.#receiveTaken += payload.length;
    if (this.#receiveTaken > FIRST_WINDOW_BYTES) {
      throw new ConnectionFault(REASON.flowControlError, "more than the connection's window");
    }
    if (this.#receiveTaken >= FIRST_WINDOW_BYTES / 4) {
      this.write(frameOfNumbers(FRAME.windowUpdate, 0, 0, this.#receiveTaken));
      this.#receiveTaken = 0;
    }
    const body = Http2Connection.#withoutPadding(flags, payload);
    if (stream === undefined) {
      return;
    }
    if (stream.isWhole) {
      this.#resetStream(stream, REASON.streamClosed);
      return;
    }
    if (!stream.receive(payload.length)) {
      this.#resetStream(stream, REASON.flowControlError);
      return;
    }
    stream.isWhole = (flags & FLAG.endStream) !== 0;
    stream.taker?.onData(body);
    if (stream.isWhole) {
      stream.taker?.onEnd();
    } else {
      stream.received();
    }
  }

  #takeHeaders(flags: number, id: number, payload: Buffer): void {
    if (id % 2 === 0) {
      throw new ConnectionFault(REASON.protocolError, "clients' streams have odd numbers");
    }
    let block = Http2Connection.#withoutPadding(flags, payload);
    if ((flags & FLAG.priority) !== 0) {
      if (block.length < PRIORITY_BYTES) {
        throw new ConnectionFault(REASON.frameSizeError, "HEADERS without its priority");
      }
      block = block.subarray(PRIORITY_BYTES);
    }
    const isEnd = (flags & FLAG.endStream) !== 0;
    if ((flags & FLAG.endHeaders) !== 0) {
      this.#takeBlock(id, isEnd, block);
    } else {
      this.#block = { stream: id, isEnd, pieces: [Buffer.from(block)], bytes: block.length };
    }
  }

  #takeContinuation(flags: number, payload: Buffer): void {
    const block = this.#block;
    if (block === undefined) {
      throw new ConnectionFault(REASON.protocolError, "CONTINUATION without HEADERS");
    }
    block.pieces.push(Buffer.from(payload));
    block.bytes += payload.length;
    if (block.bytes > HEADER_BLOCK_MAX_BYTES || block.pieces.length > CONTINUATIONS_MAX_COUNT) {
      throw new ConnectionFault(REASON.enhanceYourCalm, "a header block is too long");
    }
    if ((flags & FLAG.endHeaders) !== 0) {
      this.#block = undefined;
      this.#takeBlock(block.stream, block.isEnd, Buffer.concat(block.pieces));
    }
  }

  #takeBlock(id: number, isEnd: boolean, block: Buffer): void {
    // Whatever becomes of the stream: the next block builds on it.
    const headers = this.#headers.decode(block);
    const open = this.#find(id);
    if (open !== undefined) {
      this.#takeTrailers(open, isEnd);
    } else if (id > this.#lastStream) {
      if (!this.#isGoing) {
        this.#lastStream = id;
        this.#open(id, isEnd, headers);
      }
    }
  }

  #takeTrailers(stream: Http2Stream, isEnd: boolean): void {
    if (!isEnd || stream.isWhole) {
      this.#resetStream(stream, stream.isWhole ? REASON.streamClosed : REASON.protocolError);
      return;
    }
    stream.isWhole = true;
    stream.taker?.onEnd();
  }

  #open(id: number, isEnd: boolean, headers: HeaderList): void {
    if (this.#streams.length >= this.#limits.streamsCount) {
      if (this.#ourSettingsHold) {
        throw new ConnectionFault(REASON.protocolError, "more requests at once than it was told");
      }
      this.write(frameOfNumbers(FRAME.reset, 0, id, REASON.refusedStream));
      return;
    }
    const stream = new Http2Stream(id, this, this.#firstSendWindow);
    stream.isWhole = isEnd;
    this.#streams.push(stream);
    if (headers.tooLarge || !isWellFormed(headers.fields)) {
      this.#resetStream(stream, headers.tooLarge ? REASON.enhanceYourCalm : REASON.protocolError);
      return;
    }
    stream.taker = this.#onRequest(stream, headers);
    if (stream.isClosed) {
      stream.taker = undefined;
    } else if (isEnd) {
      stream.taker?.onEnd();
    }
  }

  #takeReset(id: number, payload: Buffer): void {
    if (payload.length !== 4) {
      throw new ConnectionFault(REASON.frameSizeError, "RST_STREAM");
    }
    const stream = this.#streamOf(id);
    this.#countReset();
    if (stream !== undefined) {
      this.#forget(stream);
      this.#endIfIdle();
    }
  }

  /** The client's fault, or its wish: both cost the server a request's work. */
  #countReset(): void {
    if (!this.#resets.take()) {
      throw new ConnectionFault(REASON.enhanceYourCalm, "too many streams were reset");
    }
  }

  #resetStream(stream: Http2Stream, reason: Reason): void {
    this.#countReset();
    stream.reset(reason);
  }

  #takeSettings(flags: number, id: number, payload: Buffer): void {
    if (id !== 0) {
      throw new ConnectionFault(REASON.protocolError, "SETTINGS of a stream");
    }
    if ((flags & FLAG.ack) !== 0) {
      if (payload.length !== 0) {
        throw new ConnectionFault(REASON.frameSizeError, "SETTINGS");
      }
      this.#ourSettingsHold = true;
      return;
    }
    if (payload.length % 6 !== 0) {
      throw new ConnectionFault(REASON.frameSizeError, "SETTINGS");
    }
    for (let at = 0; at < payload.length; at += 6) {
      this.#takeSetting(payload.readUInt16BE(at), payload.readUInt32BE(at + 2));
    }
    this.write(frame(FRAME.settings, FLAG.ack, 0, NO_BYTES));
    this.#pump();
  }

  #takeSetting(identifier: number, value: number): void {
    if (identifier === SETTING.initialWindowSize) {
      if (value > WINDOW_MAX_BYTES) {
        throw new ConnectionFault(REASON.flowControlError, "a window is too large");
      }
      const change = value - this.#firstSendWindow;
      this.#firstSendWindow = value;
      for (const stream of this.#streams) {
        this.#widen(stream, change);
      }
    } else if (identifier === SETTING.maxFrameSize) {
      if (value < FRAME_PAYLOAD_BYTES || value > FRAME_PAYLOAD_MAX_BYTES) {
        throw new ConnectionFault(REASON.protocolError, "a frame's size is out of range");
      }
      // Larger frames would only make others wait longer.
      this.#framePayloadBytes = FRAME_PAYLOAD_BYTES;
    } else if (identifier === SETTING.enablePush && value > 1) {
      throw new ConnectionFault(REASON.protocolError, "ENABLE_PUSH is neither 0 nor 1");
    }
  }

  #widen(stream: Http2Stream, bytes: number): void {
    stream.sendWindow += bytes;
    if (stream.sendWindow > WINDOW_MAX_BYTES) {
      throw new ConnectionFault(REASON.flowControlError, "a window is too large");
    }
    if (stream.unsentBytes > 0) {
      this.wantToSend(stream);
    }
  }

  #takePing(flags: number, id: number, payload: Buffer): void {
    if (id !== 0 || payload.length !== 8) {
      throw new ConnectionFault(id === 0 ? REASON.frameSizeError : REASON.protocolError, "PING");
    }
    if ((flags & FLAG.ack) !== 0) {
      this.#waitsForPong = false;
    } else {
      this.write(frame(FRAME.ping, FLAG.ack, 0, payload));
    }
  }

  #takeWindow(id: number, payload: Buffer): void {
    if (payload.length !== 4) {
      throw new ConnectionFault(REASON.frameSizeError, "WINDOW_UPDATE");
    }
    const bytes = payload.readUInt32BE() & WINDOW_MAX_BYTES;
    if (id === 0) {
      this.#sendWindow += bytes;
      if (bytes === 0 || this.#sendWindow > WINDOW_MAX_BYTES) {
        throw new ConnectionFault(bytes === 0 ? REASON.protocolError : REASON.flowControlError, "WINDOW_UPDATE");
      }
      this.#pump();
      return;
    }
    const stream = this.#streamOf(id);
    if (stream === undefined) {
      return;
    }
    if (bytes === 0 || stream.sendWindow + bytes > WINDOW_MAX_BYTES) {
      this.#resetStream(stream, bytes === 0 ? REASON.protocolError : REASON.flowControlError);
      return;
    }
    this.#widen(stream, bytes);
    this.#pump();
  }

  // Writing.

  #isFull(): boolean {
    return this.#socket.writableLength + this.#outBytes > SOCKET_AHEAD_BYTES;
  }

  /** Lets those that wait send in turn, a frame each, as far as windows and the socket go. */
  #pump(): void {
    while (this.#waiting.length > 0 && this.#sendWindow > 0 && !this.#isFull() && !this.#isOver) {
      const stream = this.#waiting.shift() as Http2Stream;
      stream.isWaiting = false;
      const most = Math.min(stream.sendWindow, this.#sendWindow, this.#framePayloadBytes);
      if (stream.isClosed || stream.unsentBytes === 0 || most <= 0) {
        continue;
      }
      const part = stream.takeUnsent(most);
      const head = Buffer.allocUnsafe(FRAME_HEAD_BYTES);
      writeFrameHead(head, 0, part.length, FRAME.data, 0, stream.id);
      stream.sendWindow -= part.length;
      this.#sendWindow -= part.length;
      this.write(head);
      this.write(part);
      if (stream.unsentBytes > 0) {
        this.wantToSend(stream);
      }
      stream.afterSending();
    }
    if (!this.#isReading && this.#out.length > 0) {
      this.#writeOut();
    }
  }

  #flush(): void {
    this.#flushes = false;
    if (this.#isOver) {
      return;
    }
    this.#pump();
    this.#endIfIdle();
  }

  #writeOut(): void {
    const out = this.#out;
    const bytes = this.#outBytes;
    this.#out = [];
    this.#outBytes = 0;
    const [first] = out;
    if (first === undefined || this.#socket.destroyed) {
      return;
    }
    if (out.length === 1 || bytes <= JOIN_MAX_BYTES) {
      this.#socket.write(out.length === 1 ? first : Buffer.concat(out, bytes));
      return;
    }
    this.#socket.cork();
    for (const piece of out) {
      this.#socket.write(piece);
    }
    this.#socket.uncork();
  }

  // The end.

  #forget(stream: Http2Stream): void {
    const at = this.#streams.indexOf(stream);
    if (at >= 0) {
      const last = this.#streams.pop() as Http2Stream;
      if (last !== stream) {
        this.#streams[at] = last;
      }
      stream.close();
    }
  }

  #endIfIdle(): void {
    if (this.#isGoing && this.#streams.length === 0 && !this.#isReading && !this.#isOver) {
      this.#finish();
    }
  }

  /** Everything that is to be said is; the socket ends when that has left. */
  #finish(): void {
    this.#writeOut();
    this.#isOver = true;
    this.#socket.destroySoon();
  }

  #fail(reason: Reason): void {
    this.write(frameOfNumbers(FRAME.goaway, 0, 0, this.#lastStream, reason));
    this.#finish();
    this.#closeStreams();
  }

  /** The client says nothing more: what runs has nobody any more who would wait for it. */
  #end(): void {
    this.#socket.destroySoon();
  }

  #gone(): void {
    this.#isOver = true;
    this.#closeStreams();
  }

  #closeStreams(): void {
    for (const stream of [...this.#streams]) {
      this.#forget(stream);
    }
  }
}

/** A name has no capitals, and no field what would end a line (RFC 9113, 8.2.1); `:` begins none but the first ones. */
function isWellFormed(fields: readonly string[]): boolean {
  let inPseudo = true;
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i] as string;
    if (name.length === 0 || FORBIDDEN_IN_NAMES.test(name) || FORBIDDEN_IN_VALUES.test(fields[i + 1] as string)) {
      return false;
    }
    const isPseudo = name.charCodeAt(0) === COLON;
    if (isPseudo && !inPseudo) {
      return false;
    }
    inPseudo = isPseudo;
  }
  return true;
}

const COLON = 58;
const FORBIDDEN_IN_NAMES = /[^\x21-\x40\x5b-\x7e]|^.+:/;
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
const FORBIDDEN_IN_VALUES = /[\0\r\n]/;
