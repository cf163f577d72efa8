import { randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { ConnectionFault } from "./connection-fault.ts";
import { FrameOutput } from "./frame-output.ts";
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
} from "./frames.ts";
import { type HeaderBlock, HeaderBlocks, withoutPadding } from "./header-blocks.ts";
import { HeaderBlockError, HeaderDecoder, type HeaderList } from "./header-decoder.ts";
import { Http2Stream, type StreamConnection, type StreamTaker } from "./http2-stream.ts";
import { ResetGauge } from "./reset-gauge.ts";
import { areTrailers, isRequest } from "./well-formed.ts";

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
  /** A request has come, perhaps without its body; undefined when the stream was ended here. Must not throw. */
  onRequest: (stream: Http2Stream, headers: HeaderList) => StreamTaker | undefined;
}

/** HPACK's own: what a client's encoder may keep here. */
const HEADER_TABLE_BYTES = 4096;
/** HPACK's update of the table's size, to 0: a client that allows none must read it before the first header. */
const NO_TABLE = Buffer.from([0x20]);
const NO_BYTES = Buffer.alloc(0);
const CUT_SHORT_MAX_COUNT = 128;
/** Payloads whose length is fixed (RFC 9113, section 6). */
const PAYLOAD_BYTES = { priority: 5, reset: 4, setting: 6, ping: 8, goawayMin: 8, windowUpdate: 4 } as const;

function check(holds: boolean, reason: Reason, message: string): void {
  if (!holds) {
    throw new ConnectionFault(reason, message);
  }
}

/**
 * The server's side of one HTTP/2 connection (RFC 9113): frames become requests, replies become frames. It makes nothing for
 * a request but its stream and its headers, which is why it exists: with node:http2 a call costs twice as much.
 */
export class Http2Connection implements StreamConnection {
  readonly #socket: Socket;
  readonly #limits: Http2Limits;
  readonly #onRequest: Http2ConnectionOptions["onRequest"];
  readonly #output: FrameOutput;
  readonly #blocks = new HeaderBlocks();
  readonly #headers: HeaderDecoder;
  readonly #resets: ResetGauge;
  /** Those that are open: few, so that a list is looked through as fast as a table. */
  readonly #streams: Http2Stream[] = [];
  /** What came of a frame that is not whole. */
  #rest: Buffer = NO_BYTES;
  #hasGreeted = false;
  /** Its first frame, which is SETTINGS, has come. */
  #hasSettings = false;
  /** The last of those that ended before their requests did: what was on its way may still come. */
  readonly #cutShort: number[] = [];
  #lastStream = 0;
  /** Bytes of bodies that came since the client was last allowed more. */
  #takenBytes = 0;
  /** What the client allows each new stream. */
  #firstSendWindow = FIRST_WINDOW_BYTES;
  /** It knows how many requests it may make. */
  #knowsLimits = false;
  #saidNoTable = false;
  #isReading = false;
  /** Asked to go: no new requests, and the end when the open ones are over. */
  #isGoing = false;
  #isOver = false;
  #pingedAtMs = performance.now();
  /** What the client has to send back; undefined when it has. */
  #ping: Buffer | undefined;

  constructor({ socket, limits, onRequest }: Http2ConnectionOptions) {
    this.#socket = socket;
    this.#limits = limits;
    this.#onRequest = onRequest;
    this.#output = new FrameOutput(socket);
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
    socket.on("data", (piece: Buffer) => this.#read(piece));
    socket.on("end", () => socket.destroySoon());
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.#gone());
  }

  /** Tells the client to come again elsewhere, and ends when the open requests are over. */
  close(): void {
    if (!this.#isGoing && !this.#isOver) {
      this.#isGoing = true;
      this.write(frameOfNumbers(FRAME.goaway, 0, 0, this.#lastStream, REASON.noError));
      this.#endIfIdle();
    }
  }

  /** Asks for a sign of life when it is time to; a client that gave none in time is gone. */
  keepAlive(nowMs: number, intervalMs: number, timeoutMs: number): void {
    const pastMs = nowMs - this.#pingedAtMs;
    if (this.#ping !== undefined && pastMs > timeoutMs) {
      this.#socket.destroy();
    } else if (this.#ping === undefined && pastMs > intervalMs) {
      // One that cannot be answered by a client that does not read.
      this.#ping = randomBytes(PAYLOAD_BYTES.ping);
      this.#pingedAtMs = nowMs;
      this.write(frame(FRAME.ping, 0, 0, this.#ping));
    }
  }

  // What streams ask.

  write(bytes: Uint8Array): void {
    this.#output.write(bytes);
  }

  headerBlock(block: Buffer): Buffer {
    if (this.#saidNoTable) {
      return block;
    }
    this.#saidNoTable = true;
    return Buffer.concat([NO_TABLE, block]);
  }

  mayPass(bytes: number): boolean {
    return this.#output.mayPass(bytes);
  }

  wantToSend(stream: Http2Stream): void {
    this.#output.wantToSend(stream);
  }

  streamDone(stream: Http2Stream, reason: Reason | undefined): void {
    const code = reason ?? (stream.isWhole ? undefined : REASON.noError);
    if (code !== undefined) {
      this.write(frameOfNumbers(FRAME.reset, 0, stream.id, code));
    }
    this.#forget(stream);
    this.#endIfIdle();
  }

  // Reading.

  #read(piece: Buffer): void {
    if (this.#isOver) {
      return;
    }
    const bytes = this.#rest.length === 0 ? piece : Buffer.concat([this.#rest, piece]);
    this.#isReading = true;
    this.#output.hold();
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
      if (!this.#output.release()) {
        this.#socket.destroy();
      }
    }
    this.#endIfIdle();
  }

  /** Takes the whole frames; gives where the first one begins that is not. */
  #takeFrames(bytes: Buffer): number {
    let at = this.#hasGreeted ? 0 : this.#takePreface(bytes);
    while (this.#hasGreeted && bytes.length - at >= FRAME_HEAD_BYTES && !this.#isOver) {
      const length = bytes.readUIntBE(at, 3);
      check(length <= FRAME_PAYLOAD_BYTES, REASON.frameSizeError, "a frame is too long");
      const payloadAt = at + FRAME_HEAD_BYTES;
      if (payloadAt + length > bytes.length) {
        break;
      }
      const stream = bytes.readUInt32BE(at + 5) & WINDOW_MAX_BYTES;
      const payload = bytes.subarray(payloadAt, payloadAt + length);
      this.#takeFrame(bytes[at + 3] as number, bytes[at + 4] as number, stream, payload);
      at = payloadAt + length;
    }
    return at;
  }

  /** Gives where the frames begin; 0 until all of it is here. */
  #takePreface(bytes: Buffer): number {
    const seen = Math.min(bytes.length, PREFACE.length);
    check(PREFACE.compare(bytes, 0, seen, 0, seen) === 0, REASON.protocolError, "this is not HTTP/2");
    this.#hasGreeted = seen === PREFACE.length;
    return this.#hasGreeted ? seen : 0;
  }

  #takeFrame(type: number, flags: number, id: number, payload: Buffer): void {
    check(this.#hasSettings || type === FRAME.settings, REASON.protocolError, "the first frame is not SETTINGS");
    this.#hasSettings = true;
    this.#blocks.expect(type, id);
    switch (type) {
      case FRAME.data:
        this.#takeData(flags, id, payload);
        break;
      case FRAME.headers:
        check(id % 2 === 1, REASON.protocolError, "clients' streams have odd numbers");
        this.#takeBlock(this.#blocks.begin(flags, id, payload));
        break;
      case FRAME.continuation:
        this.#takeBlock(this.#blocks.goOn(flags, payload));
        break;
      case FRAME.reset:
        this.#takeReset(id, payload);
        break;
      case FRAME.settings:
        this.#takeSettings(flags, id, payload);
        break;
      case FRAME.ping:
        this.#takePing(flags, id, payload);
        break;
      case FRAME.windowUpdate:
        this.#takeWindowUpdate(id, payload);
        break;
      case FRAME.priority:
        check(id !== 0, REASON.protocolError, "PRIORITY of no stream");
        check(payload.length === PAYLOAD_BYTES.priority, REASON.frameSizeError, "PRIORITY has another length");
        break;
      case FRAME.goaway:
        check(id === 0, REASON.protocolError, "GOAWAY of a stream");
        check(payload.length >= PAYLOAD_BYTES.goawayMin, REASON.frameSizeError, "GOAWAY is too short");
        break;
      case FRAME.pushPromise:
        throw new ConnectionFault(REASON.protocolError, "clients do not push");
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

  /** One of the client's; undefined when it is over. */
  #streamOf(id: number): Http2Stream | undefined {
    const stream = this.#find(id);
    if (stream === undefined) {
      const wasOpened = id % 2 === 1 && (id <= this.#lastStream || this.#isGoing);
      check(wasOpened, REASON.protocolError, `stream ${id} was never opened`);
    }
    return stream;
  }

  #takeData(flags: number, id: number, payload: Buffer): void {
    const stream = this.#streamOf(id);
    // Given back at once, so that it is never used up: what streams keep is limited for all connections of an address.
    this.#takenBytes += payload.length;
    if (this.#takenBytes >= FIRST_WINDOW_BYTES / 4) {
      this.write(frameOfNumbers(FRAME.windowUpdate, 0, 0, this.#takenBytes));
      this.#takenBytes = 0;
    }
    const body = withoutPadding(flags, payload);
    if (stream === undefined) {
      return;
    }
    if (stream.isWhole || !stream.use(payload.length)) {
      this.#refuse(stream, stream.isWhole ? REASON.streamClosed : REASON.flowControlError);
      return;
    }
    stream.take(body, (flags & FLAG.endStream) !== 0);
  }

  #takeBlock(block: HeaderBlock | undefined): void {
    if (block === undefined) {
      return;
    }
    // Whatever becomes of the stream: the next block builds on this one.
    const headers = this.#headers.decode(block.bytes);
    const open = this.#find(block.stream);
    if (open !== undefined) {
      this.#takeTrailers(open, block.isEnd && !headers.tooLarge && areTrailers(headers.fields));
    } else if (block.stream > this.#lastStream) {
      if (!this.#isGoing) {
        this.#lastStream = block.stream;
        this.#open(block.stream, block.isEnd, headers);
      }
    } else {
      check(this.#cutShort.includes(block.stream), REASON.protocolError, "HEADERS of a stream that is over");
    }
  }

  #takeTrailers(stream: Http2Stream, areRight: boolean): void {
    if (stream.isWhole || !areRight) {
      this.#refuse(stream, stream.isWhole ? REASON.streamClosed : REASON.protocolError);
    } else {
      stream.take(NO_BYTES, true);
    }
  }

  #open(id: number, isEnd: boolean, headers: HeaderList): void {
    if (this.#streams.length >= this.#limits.streamsCount) {
      check(!this.#knowsLimits, REASON.protocolError, "more requests at once than it may make");
      this.write(frameOfNumbers(FRAME.reset, 0, id, REASON.refusedStream));
      this.#rememberCut(id);
      return;
    }
    const stream = new Http2Stream(id, this, this.#firstSendWindow);
    this.#streams.push(stream);
    if (headers.tooLarge || !isRequest(headers.fields)) {
      this.#refuse(stream, headers.tooLarge ? REASON.enhanceYourCalm : REASON.protocolError);
      return;
    }
    const taker = this.#onRequest(stream, headers);
    if (!stream.isClosed) {
      stream.taker = taker;
      if (isEnd) {
        stream.take(NO_BYTES, true);
      }
    }
  }

  #takeReset(id: number, payload: Buffer): void {
    check(payload.length === PAYLOAD_BYTES.reset, REASON.frameSizeError, "RST_STREAM has another length");
    const stream = this.#streamOf(id);
    this.#countReset();
    if (stream !== undefined) {
      this.#forget(stream);
    }
  }

  /** By the client's wish or its fault: both cost the server a request's work. */
  #countReset(): void {
    check(this.#resets.take(), REASON.enhanceYourCalm, "too many streams were reset");
  }

  #refuse(stream: Http2Stream, reason: Reason): void {
    this.#countReset();
    stream.reset(reason);
  }

  #takeSettings(flags: number, id: number, payload: Buffer): void {
    check(id === 0, REASON.protocolError, "SETTINGS of a stream");
    if ((flags & FLAG.ack) !== 0) {
      check(payload.length === 0, REASON.frameSizeError, "SETTINGS are acknowledged with a payload");
      this.#knowsLimits = true;
      return;
    }
    check(payload.length % PAYLOAD_BYTES.setting === 0, REASON.frameSizeError, "SETTINGS have another length");
    for (let at = 0; at < payload.length; at += PAYLOAD_BYTES.setting) {
      this.#takeSetting(payload.readUInt16BE(at), payload.readUInt32BE(at + 2));
    }
    this.write(frame(FRAME.settings, FLAG.ack, 0, NO_BYTES));
  }

  #takeSetting(identifier: number, value: number): void {
    if (identifier === SETTING.initialWindowSize) {
      check(value <= WINDOW_MAX_BYTES, REASON.flowControlError, "INITIAL_WINDOW_SIZE is too large");
      const change = value - this.#firstSendWindow;
      this.#firstSendWindow = value;
      for (const stream of this.#streams) {
        check(stream.widen(change), REASON.flowControlError, "a stream's window is too large");
      }
    } else if (identifier === SETTING.maxFrameSize) {
      // No larger ones are sent, whatever it allows: others would wait longer.
      const isInRange = value >= FRAME_PAYLOAD_BYTES && value <= FRAME_PAYLOAD_MAX_BYTES;
      check(isInRange, REASON.protocolError, "MAX_FRAME_SIZE is out of range");
    } else if (identifier === SETTING.enablePush) {
      check(value <= 1, REASON.protocolError, "ENABLE_PUSH is neither 0 nor 1");
    }
  }

  #takePing(flags: number, id: number, payload: Buffer): void {
    check(id === 0, REASON.protocolError, "PING of a stream");
    check(payload.length === PAYLOAD_BYTES.ping, REASON.frameSizeError, "PING has another length");
    if ((flags & FLAG.ack) !== 0) {
      this.#ping = this.#ping?.equals(payload) === true ? undefined : this.#ping;
    } else {
      this.write(frame(FRAME.ping, FLAG.ack, 0, payload));
    }
  }

  #takeWindowUpdate(id: number, payload: Buffer): void {
    check(payload.length === PAYLOAD_BYTES.windowUpdate, REASON.frameSizeError, "WINDOW_UPDATE has another length");
    const bytes = payload.readUInt32BE() & WINDOW_MAX_BYTES;
    if (id === 0) {
      check(bytes > 0, REASON.protocolError, "WINDOW_UPDATE of 0");
      check(this.#output.widen(bytes), REASON.flowControlError, "the connection's window is too large");
      return;
    }
    const stream = this.#streamOf(id);
    if (stream !== undefined && (bytes === 0 || !stream.widen(bytes))) {
      this.#refuse(stream, bytes === 0 ? REASON.protocolError : REASON.flowControlError);
    }
  }

  // The end.

  #forget(stream: Http2Stream): void {
    const at = this.#streams.indexOf(stream);
    if (at >= 0) {
      const last = this.#streams.pop() as Http2Stream;
      if (last !== stream) {
        this.#streams[at] = last;
      }
      if (!stream.isWhole) {
        this.#rememberCut(stream.id);
      }
      this.#output.forget(stream);
      stream.close();
    }
  }

  #rememberCut(id: number): void {
    this.#cutShort.push(id);
    if (this.#cutShort.length > CUT_SHORT_MAX_COUNT) {
      this.#cutShort.shift();
    }
  }

  #endIfIdle(): void {
    if (this.#isGoing && this.#streams.length === 0 && !this.#isReading && !this.#isOver) {
      this.#isOver = true;
      this.#output.end();
    }
  }

  #fail(reason: Reason): void {
    this.write(frameOfNumbers(FRAME.goaway, 0, 0, this.#lastStream, reason));
    this.#isOver = true;
    this.#output.end();
    this.#closeStreams();
  }

  #gone(): void {
    this.#isOver = true;
    this.#output.close();
    this.#closeStreams();
  }

  #closeStreams(): void {
    for (const stream of [...this.#streams]) {
      this.#forget(stream);
    }
  }
}
