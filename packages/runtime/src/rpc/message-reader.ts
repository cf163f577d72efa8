import { keepBytes } from "./kept-bytes.ts";
import { LargeMessage } from "./large-message.ts";

/** A message of a request as it came. */
export interface ReceivedMessage {
  readonly isCompressed: boolean;
  readonly bytes: Buffer;
}

/** gRPC's flag and length before each message (PROTOCOL-HTTP2.md, Length-Prefixed-Message). */
const PREFIX_BYTES = 5;
/** Of a message that is longer, what comes is put together as it comes, not when it is whole. */
const SMALL_MAX_BYTES = 65_536;
const NO_BYTES = Buffer.alloc(0);

/** Makes messages of a request's bytes. */
export class MessageReader {
  /** Copies of what came: of small messages, and of prefixes. */
  readonly #pieces: Buffer[] = [];
  #piecesBytes = 0;
  /** Of the message that comes next; -1 until its prefix is here. */
  #nextBytes = -1;
  #nextIsCompressed = false;
  /** Without its prefix. */
  #large: LargeMessage | undefined;

  /** Bytes that came and are in no message that was taken. */
  get waitingBytes(): number {
    return this.#piecesBytes + (this.#large?.length ?? 0);
  }

  /** Of the message that comes next, without its prefix; -1 while that is not known. */
  get nextBytes(): number {
    return this.#nextBytes;
  }

  /** The next message is here. */
  get hasWhole(): boolean {
    return this.#large === undefined
      ? this.#nextBytes >= 0 && this.#piecesBytes >= PREFIX_BYTES + this.#nextBytes
      : this.#large.isWhole;
  }

  /** Copies the piece: it is a part of what its connection read, which goes on to the next. */
  push(piece: Buffer): void {
    const rest = this.#large === undefined ? piece : piece.subarray(this.#large.push(piece));
    if (rest.length > 0) {
      this.#pieces.push(keepBytes(rest));
      this.#piecesBytes += rest.length;
      this.#readPrefix();
      this.#beginLarge();
    }
  }

  /** Takes the next message, if it is whole. */
  take(): ReceivedMessage | undefined {
    if (!this.hasWhole) {
      return undefined;
    }
    const isCompressed = this.#nextIsCompressed;
    const bytes =
      this.#large === undefined
        ? this.#join(PREFIX_BYTES + this.#nextBytes).subarray(PREFIX_BYTES)
        : this.#large.take();
    this.#large = undefined;
    this.#nextBytes = -1;
    this.#readPrefix();
    this.#beginLarge();
    return { isCompressed, bytes };
  }

  #readPrefix(): void {
    if (this.#nextBytes >= 0 || this.#piecesBytes < PREFIX_BYTES) {
      return;
    }
    const prefix = this.#join(PREFIX_BYTES);
    this.#nextIsCompressed = prefix[0] !== 0;
    this.#nextBytes = prefix.readUInt32BE(1);
    this.#pieces.unshift(prefix);
    this.#piecesBytes += PREFIX_BYTES;
  }

  /** Much of a great message is here: who only says that one comes gets no memory for it. */
  #beginLarge(): void {
    const isMuch = this.#nextBytes > SMALL_MAX_BYTES && this.#piecesBytes >= PREFIX_BYTES + SMALL_MAX_BYTES;
    if (!isMuch || this.#large !== undefined) {
      return;
    }
    this.#large = new LargeMessage(this.#nextBytes);
    const here = this.#join(Math.min(this.#piecesBytes, PREFIX_BYTES + this.#nextBytes));
    this.#large.push(here.subarray(PREFIX_BYTES));
  }

  /** Takes so many bytes of the pieces, as one. */
  #join(bytes: number): Buffer {
    let count = 0;
    let found = 0;
    while (found < bytes) {
      found += this.#pieces[count]?.length ?? 0;
      count += 1;
    }
    const taken = this.#pieces.splice(0, count);
    const [first = NO_BYTES] = taken;
    const all = count === 1 ? first : Buffer.concat(taken, found);
    if (found > bytes) {
      this.#pieces.unshift(all.subarray(bytes));
    }
    this.#piecesBytes -= bytes;
    return found > bytes ? all.subarray(0, bytes) : all;
  }
}
