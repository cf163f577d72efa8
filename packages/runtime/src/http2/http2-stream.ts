import type { Sender } from "./frame-output.ts";
import {
  FIRST_WINDOW_BYTES,
  FLAG,
  FRAME,
  FRAME_HEAD_BYTES,
  FRAME_PAYLOAD_BYTES,
  frameOfNumbers,
  headerFrames,
  type Reason,
  WINDOW_MAX_BYTES,
  writeFrameHead,
} from "./frames.ts";

/** Who serves a stream's request. */
export interface StreamTaker {
  /** Bytes of the request's body came. They are the connection's own, and good until this returns. */
  onData(piece: Buffer): void;
  /** The request is whole. */
  onEnd(): void;
  /** At most {@link REPLY_AHEAD_BYTES} of what was given to send are left. */
  onDrain(): void;
  /** The stream is over: all is sent, or it was reset from either side, or its connection is gone. Told once, and last. */
  onClose(): void;
}

/** What a stream asks of its connection. */
export interface StreamConnection {
  write(bytes: Uint8Array): void;
  /** The header block as it is to be sent on this connection now. */
  headerBlock(block: Buffer): Buffer;
  /** Whether so many bytes of a body may go at once; they count as sent then. */
  mayPass(bytes: number): boolean;
  /** The stream has bytes to send, as windows and the socket allow it. */
  wantToSend(stream: Http2Stream): void;
  /** It sends nothing more; with `reason` its client is told that it takes nothing more either. */
  streamDone(stream: Http2Stream, reason: Reason | undefined): void;
}

/** Who gives more than this to be sent should wait for `onDrain`. */
export const REPLY_AHEAD_BYTES = 65_536;
/** The window is opened again when so much of it is used: each time costs both sides a frame. */
const WINDOW_STEP_BYTES = 16_384;

/** One request and its reply. */
export class Http2Stream implements Sender {
  readonly id: number;
  readonly #connection: StreamConnection;
  taker: StreamTaker | undefined;
  /** The request is whole. */
  isWhole = false;
  /** Nothing of it is sent or received any more. */
  isClosed = false;
  isWaiting = false;
  sendWindow: number;
  /** What its client may send. */
  #receiveWindow = FIRST_WINDOW_BYTES;
  /** What it has sent since it was last allowed more. */
  #usedBytes = 0;
  #isHeld = false;
  readonly #unsent: Uint8Array[] = [];
  /** Of the first of them, what is sent. */
  #sentOfFirst = 0;
  #unsentBytes = 0;
  #trailers: Buffer | undefined;

  constructor(id: number, connection: StreamConnection, sendWindow: number) {
    this.id = id;
    this.#connection = connection;
    this.sendWindow = sendWindow;
  }

  /** Bytes of the reply's body that were given to be sent and that the connection has not taken. */
  get unsentBytes(): number {
    return this.#unsentBytes;
  }

  // The reply, by its taker.

  /** Sends the reply's headers. */
  sendHead(block: Buffer): void {
    if (!this.isClosed) {
      this.#connection.write(headerFrames(this.id, this.#connection.headerBlock(block), false));
    }
  }

  /** Sends a part of the reply's body, which must not be changed afterwards. False: wait for `onDrain`. */
  send(bytes: Uint8Array): boolean {
    if (!this.isClosed) {
      this.#unsent.push(bytes);
      this.#unsentBytes += bytes.length;
      this.#connection.wantToSend(this);
    }
    return this.#unsentBytes <= REPLY_AHEAD_BYTES;
  }

  /** Ends the reply, after what was given before; the only headers of one that has no others. */
  end(trailers: Buffer): void {
    if (!this.isClosed && this.#trailers === undefined) {
      this.#trailers = trailers;
      this.#finishIfSent();
    }
  }

  /** Headers, a body of two parts and trailers: in one go where windows allow it, as for most replies. */
  reply(head: Buffer, prefix: Buffer, body: Uint8Array, trailers: Buffer): void {
    if (this.isClosed) {
      return;
    }
    const bodyBytes = prefix.length + body.length;
    if (bodyBytes <= FRAME_PAYLOAD_BYTES && bodyBytes <= this.sendWindow && this.#connection.mayPass(bodyBytes)) {
      this.#connection.write(this.#wholeReply(this.#connection.headerBlock(head), prefix, body, trailers));
      this.#connection.streamDone(this, undefined);
      return;
    }
    this.sendHead(head);
    this.send(prefix);
    this.send(body);
    this.end(trailers);
  }

  /** Ends it at once; what is not sent by then is not sent. */
  reset(reason: Reason): void {
    if (!this.isClosed) {
      this.#connection.streamDone(this, reason);
    }
  }

  /** Its client may send no more than it is allowed already, until `release`. */
  hold(): void {
    this.#isHeld = true;
  }

  release(): void {
    this.#isHeld = false;
    this.#openWindow();
  }

  // By its connection.

  /** Uses so much of what its client may send; false: that is more. */
  use(bytes: number): boolean {
    this.#receiveWindow -= bytes;
    this.#usedBytes += bytes;
    return this.#receiveWindow >= 0;
  }

  /** A piece of the request's body came, perhaps its last. */
  take(body: Buffer, isEnd: boolean): void {
    this.isWhole = isEnd;
    this.taker?.onData(body);
    if (isEnd) {
      this.taker?.onEnd();
    } else {
      this.#openWindow();
    }
  }

  /** Its client takes more, or less; false: more than a window may have. */
  widen(bytes: number): boolean {
    this.sendWindow += bytes;
    this.#connection.wantToSend(this);
    return this.sendWindow <= WINDOW_MAX_BYTES;
  }

  takeUnsent(mostBytes: number): Uint8Array {
    const first = this.#unsent[0] as Uint8Array;
    const part = first.subarray(this.#sentOfFirst, this.#sentOfFirst + mostBytes);
    this.#sentOfFirst += part.length;
    if (this.#sentOfFirst === first.length) {
      this.#unsent.shift();
      this.#sentOfFirst = 0;
    }
    this.#unsentBytes -= part.length;
    return part;
  }

  afterSending(): void {
    this.#finishIfSent();
    if (this.#unsentBytes <= REPLY_AHEAD_BYTES) {
      this.taker?.onDrain();
    }
  }

  /**
   * It is over, and keeps nothing: a stream that waited long for its turn lies where only full collections look, with all
   * that it still has.
   */
  close(): void {
    if (!this.isClosed) {
      this.isClosed = true;
      this.#unsent.length = 0;
      this.#unsentBytes = 0;
      this.#trailers = undefined;
      const { taker } = this;
      this.taker = undefined;
      taker?.onClose();
    }
  }

  #openWindow(): void {
    if (this.#usedBytes >= WINDOW_STEP_BYTES && !this.#isHeld && !this.isWhole && !this.isClosed) {
      this.#connection.write(frameOfNumbers(FRAME.windowUpdate, 0, this.id, this.#usedBytes));
      this.#receiveWindow += this.#usedBytes;
      this.#usedBytes = 0;
    }
  }

  #finishIfSent(): void {
    if (this.#trailers !== undefined && this.#unsentBytes === 0 && !this.isClosed) {
      this.#connection.write(headerFrames(this.id, this.#connection.headerBlock(this.#trailers), true));
      this.#connection.streamDone(this, undefined);
    }
  }

  #wholeReply(head: Buffer, prefix: Buffer, body: Uint8Array, trailers: Buffer): Buffer {
    const bodyBytes = prefix.length + body.length;
    const whole = Buffer.allocUnsafe(3 * FRAME_HEAD_BYTES + head.length + bodyBytes + trailers.length);
    writeFrameHead(whole, 0, head.length, FRAME.headers, FLAG.endHeaders, this.id);
    whole.set(head, FRAME_HEAD_BYTES);
    const dataAt = FRAME_HEAD_BYTES + head.length;
    writeFrameHead(whole, dataAt, bodyBytes, FRAME.data, 0, this.id);
    whole.set(prefix, dataAt + FRAME_HEAD_BYTES);
    whole.set(body, dataAt + FRAME_HEAD_BYTES + prefix.length);
    const trailersAt = dataAt + FRAME_HEAD_BYTES + bodyBytes;
    writeFrameHead(whole, trailersAt, trailers.length, FRAME.headers, FLAG.endHeaders | FLAG.endStream, this.id);
    whole.set(trailers, trailersAt + FRAME_HEAD_BYTES);
    return whole;
  }
}
