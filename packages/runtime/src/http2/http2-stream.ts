import {
  FIRST_WINDOW_BYTES,
  FLAG,
  FRAME,
  FRAME_HEAD_BYTES,
  FRAME_PAYLOAD_BYTES,
  headerFrames,
  type Reason,
  writeFrameHead,
} from "./frames.ts";

/** Who serves a stream's request. */
export interface StreamTaker {
  /** Bytes of the request's body came. They are the connection's own, and good until this returns. */
  onData(piece: Buffer): void;
  /** The request is whole. */
  onEnd(): void;
  /** Less than {@link REPLY_AHEAD_BYTES} of what was given to send is left. */
  onDrain(): void;
  /** The stream is over: all is sent, or it was reset from either side, or its connection is gone. Told once, and last. */
  onClose(): void;
}

/** What a stream asks of its connection. */
export interface StreamConnection {
  write(bytes: Buffer): void;
  /** The block as it is to be sent on this connection now. */
  headerBlock(block: Buffer): Buffer;
  /** The stream has bytes to send, as windows and the socket allow it. */
  wantToSend(stream: Http2Stream): void;
  /** It sends nothing more; with `reason` its client is told that it takes nothing more either. */
  streamDone(stream: Http2Stream, reason: Reason | undefined): void;
  /** Its client may send so many more bytes. */
  openWindow(stream: Http2Stream, bytes: number): void;
  /** True while small replies may be written without asking. */
  mayWrite(bytes: number): boolean;
  took(bytes: number): void;
}

/** Who gives more than this to be sent should wait for `onDrain`. */
export const REPLY_AHEAD_BYTES = 65_536;
/** The window is opened again when so much of it is used: each time costs both sides a frame. */
const WINDOW_STEP_BYTES = 16_384;

/** One request and its reply. Made by its connection, which alone calls what begins with `receive` and `take`. */
export class Http2Stream {
  readonly id: number;
  readonly #connection: StreamConnection;
  taker: StreamTaker | undefined;
  /** The request is whole. */
  isWhole = false;
  /** Nothing of it is sent or received any more. */
  isClosed = false;
  /** In its connection's list of those that wait to send. */
  isWaiting = false;
  /** What its client lets it send. */
  sendWindow: number;
  /** What its client may send. */
  receiveWindow = FIRST_WINDOW_BYTES;
  /** Taken from the window, and not given back yet. */
  #taken = 0;
  #isHeld = false;
  #unsent: Uint8Array[] = [];
  /** Of the first of them, what is sent. */
  #sentOfFirst = 0;
  #unsentBytes = 0;
  #trailers: Buffer | undefined;

  constructor(id: number, connection: StreamConnection, sendWindow: number) {
    this.id = id;
    this.#connection = connection;
    this.sendWindow = sendWindow;
  }

  /** Bytes that were given to be sent and that its client has not taken. */
  get unsentBytes(): number {
    return this.#unsentBytes;
  }

  /** Sends the reply's headers. */
  sendHead(block: Buffer): void {
    if (!this.isClosed) {
      this.#connection.write(headerFrames(this.id, this.#connection.headerBlock(block), false));
    }
  }

  /** Sends a part of the reply's body, which must not be changed afterwards. False: wait for `onDrain`. */
  send(bytes: Uint8Array): boolean {
    if (this.isClosed) {
      return true;
    }
    this.#unsent.push(bytes);
    this.#unsentBytes += bytes.length;
    this.#connection.wantToSend(this);
    return this.#unsentBytes <= REPLY_AHEAD_BYTES;
  }

  /** Ends the reply, after what was given before. */
  end(trailers: Buffer): void {
    if (this.isClosed || this.#trailers !== undefined) {
      return;
    }
    this.#trailers = trailers;
    if (this.#unsentBytes === 0) {
      this.#finish();
    }
  }

  /** Headers, a body of two parts and trailers in one go, where windows allow it: most replies are like that. */
  reply(head: Buffer, prefix: Buffer, body: Uint8Array, trailers: Buffer): void {
    const bytes = prefix.length + body.length;
    if (this.isClosed) {
      return;
    }
    if (bytes > this.sendWindow || bytes > FRAME_PAYLOAD_BYTES || !this.#connection.mayWrite(bytes)) {
      this.sendHead(head);
      this.send(prefix);
      this.send(body);
      this.end(trailers);
      return;
    }
    const headers = this.#connection.headerBlock(head);
    const whole = Buffer.allocUnsafe(3 * FRAME_HEAD_BYTES + headers.length + bytes + trailers.length);
    writeFrameHead(whole, 0, headers.length, FRAME.headers, FLAG.endHeaders, this.id);
    whole.set(headers, FRAME_HEAD_BYTES);
    const dataAt = FRAME_HEAD_BYTES + headers.length;
    writeFrameHead(whole, dataAt, bytes, FRAME.data, 0, this.id);
    whole.set(prefix, dataAt + FRAME_HEAD_BYTES);
    whole.set(body, dataAt + FRAME_HEAD_BYTES + prefix.length);
    const trailersAt = dataAt + FRAME_HEAD_BYTES + bytes;
    writeFrameHead(whole, trailersAt, trailers.length, FRAME.headers, FLAG.endHeaders | FLAG.endStream, this.id);
    whole.set(trailers, trailersAt + FRAME_HEAD_BYTES);
    this.#connection.took(bytes);
    this.sendWindow -= bytes;
    this.#connection.write(whole);
    this.#connection.streamDone(this, undefined);
  }

  /** Ends it at once; what is not sent by then is not sent. */
  reset(reason: Reason): void {
    if (!this.isClosed) {
      this.#connection.streamDone(this, reason);
    }
  }

  /** Its client may send no more than it was allowed to, until `release`. */
  hold(): void {
    this.#isHeld = true;
  }

  release(): void {
    this.#isHeld = false;
    this.#openWindow();
  }

  /** So many bytes of the window were used; false: there were not so many. */
  receive(bytes: number): boolean {
    this.receiveWindow -= bytes;
    this.#taken += bytes;
    return this.receiveWindow >= 0;
  }

  /** After the taker has seen what came. */
  received(): void {
    if (!this.#isHeld) {
      this.#openWindow();
    }
  }

  #openWindow(): void {
    if (this.#taken >= WINDOW_STEP_BYTES && !this.isWhole && !this.isClosed) {
      this.#connection.openWindow(this, this.#taken);
      this.receiveWindow += this.#taken;
      this.#taken = 0;
    }
  }

  /** The next part to be sent, of at most so many bytes and of one piece. */
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

  /** After some were sent. */
  afterSending(): void {
    if (this.#unsentBytes === 0 && this.#trailers !== undefined) {
      this.#finish();
    } else if (this.#unsentBytes <= REPLY_AHEAD_BYTES) {
      this.taker?.onDrain();
    }
  }

  #finish(): void {
    const trailers = this.#connection.headerBlock(this.#trailers as Buffer);
    this.#connection.write(headerFrames(this.id, trailers, true));
    this.#connection.streamDone(this, undefined);
  }

  /** It is over. */
  close(): void {
    if (!this.isClosed) {
      this.isClosed = true;
      this.#unsent = [];
      this.#unsentBytes = 0;
      const { taker } = this;
      this.taker = undefined;
      taker?.onClose();
    }
  }
}
