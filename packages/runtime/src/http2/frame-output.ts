import type { Socket } from "node:net";
import {
  FIRST_WINDOW_BYTES,
  FRAME,
  FRAME_HEAD_BYTES,
  FRAME_PAYLOAD_BYTES,
  WINDOW_MAX_BYTES,
  writeFrameHead,
} from "./frames.ts";

/** What sends parts of its body as it may. */
export interface Sender {
  readonly id: number;
  readonly unsentBytes: number;
  /** What its client lets it send. */
  sendWindow: number;
  /** In the list of those that wait to send. */
  isWaiting: boolean;
  /** The next part of its body, of at most so many bytes. */
  takeUnsent(mostBytes: number): Uint8Array;
  /** After a part was sent. */
  afterSending(): void;
}

/** Bytes that the socket keeps at most before bodies wait. */
const SOCKET_AHEAD_BYTES = 131_072;
/** The same of answers to a client that asks, and does not read: acknowledgements and refusals. */
const ANSWERS_MAX_BYTES = 131_072;
/** How long a client may take to read what it is told last. */
const LAST_WORDS_MS = 2000;
/** Below, one write of one piece costs less than one of many. */
const JOIN_MAX_BYTES = 65_536;

/**
 * What a connection sends: frames of one turn of the event loop leave in one write, bodies as windows and the socket allow
 * it, those of several streams in turn.
 */
export class FrameOutput {
  readonly #socket: Socket;
  readonly #waiting: Sender[] = [];
  #window = FIRST_WINDOW_BYTES;
  #frames: Uint8Array[] = [];
  #bytes = 0;
  #isHeld = false;
  #willFlush = false;
  #isOver = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("drain", () => this.flush());
  }

  /** Adds a frame, or a part of one; with its socket gone it goes nowhere. */
  write(bytes: Uint8Array): void {
    if (!this.#isOver) {
      this.#frames.push(bytes);
      this.#bytes += bytes.length;
      this.#flushLater();
    }
  }

  /** Whether a body of so many bytes may go at once, and counts as sent then. */
  mayPass(bytes: number): boolean {
    const may = bytes <= this.#window && this.#waiting.length === 0 && !this.#isFull();
    this.#window -= may ? bytes : 0;
    return may;
  }

  /** The client lets the connection send more; false: more than a window may have. */
  widen(bytes: number): boolean {
    this.#window += bytes;
    return this.#window <= WINDOW_MAX_BYTES;
  }

  /** The sender has more to send than before, or may send more. */
  wantToSend(sender: Sender): void {
    if (!sender.isWaiting && sender.sendWindow > 0 && sender.unsentBytes > 0) {
      sender.isWaiting = true;
      this.#waiting.push(sender);
      this.#flushLater();
    }
  }

  /** The sender is over. */
  forget(sender: Sender): void {
    if (sender.isWaiting) {
      sender.isWaiting = false;
      this.#waiting.splice(this.#waiting.indexOf(sender), 1);
    }
  }

  /** Keeps everything until `release`: what a piece of requests is answered leaves in one write. */
  hold(): void {
    this.#isHeld = true;
  }

  /** False: its client asks and asks, and reads nothing. */
  release(): boolean {
    this.#isHeld = false;
    this.flush();
    return this.#socket.writableLength <= SOCKET_AHEAD_BYTES + ANSWERS_MAX_BYTES;
  }

  /** Hands the socket what may go. */
  flush(): void {
    this.#willFlush = false;
    if (!this.#isHeld && !this.#isOver) {
      this.#sendBodies();
      this.#writeFrames();
    }
  }

  /** Hands the socket what was written, and ends it when that has left; bodies that wait are not sent. */
  end(): void {
    if (!this.#isOver) {
      this.#writeFrames();
      this.#isOver = true;
      this.#socket.destroySoon();
      const timer = setTimeout(() => this.#socket.destroy(), LAST_WORDS_MS).unref();
      this.#socket.once("close", () => clearTimeout(timer));
    }
  }

  /** The socket is gone. */
  close(): void {
    this.#isOver = true;
    this.#frames = [];
  }

  #flushLater(): void {
    if (!this.#isHeld && !this.#willFlush) {
      this.#willFlush = true;
      process.nextTick(() => this.flush());
    }
  }

  #isFull(): boolean {
    return this.#socket.writableLength + this.#bytes > SOCKET_AHEAD_BYTES;
  }

  /** A frame of each in turn: a long body must not keep the others waiting. */
  #sendBodies(): void {
    while (this.#waiting.length > 0 && this.#window > 0 && !this.#isFull()) {
      const sender = this.#waiting.shift() as Sender;
      sender.isWaiting = false;
      const most = Math.min(sender.sendWindow, this.#window, FRAME_PAYLOAD_BYTES);
      if (sender.unsentBytes === 0 || most <= 0) {
        continue;
      }
      const part = sender.takeUnsent(most);
      const head = Buffer.allocUnsafe(FRAME_HEAD_BYTES);
      writeFrameHead(head, 0, part.length, FRAME.data, 0, sender.id);
      sender.sendWindow -= part.length;
      this.#window -= part.length;
      this.#frames.push(head, part);
      this.#bytes += FRAME_HEAD_BYTES + part.length;
      this.wantToSend(sender);
      sender.afterSending();
    }
  }

  #writeFrames(): void {
    const frames = this.#frames;
    const [first] = frames;
    if (first === undefined) {
      return;
    }
    const bytes = this.#bytes;
    this.#frames = [];
    this.#bytes = 0;
    if (frames.length === 1 || bytes <= JOIN_MAX_BYTES) {
      this.#socket.write(frames.length === 1 ? first : Buffer.concat(frames, bytes));
      return;
    }
    this.#socket.cork();
    for (const piece of frames) {
      this.#socket.write(piece);
    }
    this.#socket.uncork();
  }
}
