/** A message of a request as it came. */
export interface ReceivedMessage {
  readonly isCompressed: boolean;
  /** Its own: nothing else keeps the piece that it came in. */
  readonly bytes: Buffer;
}

/** gRPC's flag and length before each message (PROTOCOL-HTTP2.md, Length-Prefixed-Message). */
const PREFIX_BYTES = 5;
const NO_BYTES = Buffer.alloc(0);

/** Makes messages of a request's bytes. */
export class MessageReader {
  readonly #pieces: Buffer[] = [];
  #bytes = 0;
  /** Of the message that comes next; -1 until its prefix is here. */
  #nextBytes = -1;
  #nextIsCompressed = false;

  /** Bytes that came and are in no message yet that was taken. */
  get waitingBytes(): number {
    return this.#bytes;
  }

  /** Of the message that comes next, without its prefix; -1 while that is not known. */
  get nextBytes(): number {
    return this.#nextBytes;
  }

  /** The next message is here. */
  get hasWhole(): boolean {
    return this.#nextBytes >= 0 && this.#bytes >= PREFIX_BYTES + this.#nextBytes;
  }

  /** Copies the piece: it is a part of what its connection read, which goes on to the next. */
  push(piece: Buffer): void {
    if (piece.length > 0) {
      this.#pieces.push(Buffer.from(piece));
      this.#bytes += piece.length;
      this.#readPrefix();
    }
  }

  /** Takes the next message, if it is whole. */
  take(): ReceivedMessage | undefined {
    if (!this.hasWhole) {
      return undefined;
    }
    const end = PREFIX_BYTES + this.#nextBytes;
    const all = this.#join(end);
    const message = { isCompressed: this.#nextIsCompressed, bytes: all.subarray(PREFIX_BYTES, end) };
    this.#bytes -= end;
    if (all.length > end) {
      this.#pieces.unshift(all.subarray(end));
    }
    this.#nextBytes = -1;
    this.#readPrefix();
    return message;
  }

  #readPrefix(): void {
    if (this.#nextBytes < 0 && this.#bytes >= PREFIX_BYTES) {
      const first = this.#join(PREFIX_BYTES);
      this.#pieces.unshift(first);
      this.#nextIsCompressed = first[0] !== 0;
      this.#nextBytes = first.readUInt32BE(1);
    }
  }

  /** Takes as many pieces as have so many bytes, as one. */
  #join(bytes: number): Buffer {
    const [first = NO_BYTES] = this.#pieces;
    if (first.length >= bytes) {
      this.#pieces.shift();
      return first;
    }
    let count = 0;
    let found = 0;
    while (found < bytes) {
      found += this.#pieces[count]?.length ?? 0;
      count += 1;
    }
    return Buffer.concat(this.#pieces.splice(0, count), found);
  }
}
