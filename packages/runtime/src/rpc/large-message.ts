/** What a message gets at first. */
const FIRST_BYTES = 131_072;
/** It gets all that it says it needs when this part of it has come: who only says so gets little more than it sends. */
const PROVED_SHARE = 1 / 8;

/**
 * A message that is put together as it comes. Joined when it is whole, one of 100 MiB would keep the event loop for a tenth
 * of a second.
 */
export class LargeMessage {
  readonly #wholeBytes: number;
  #buffer: Buffer;
  #length = 0;

  constructor(wholeBytes: number) {
    this.#wholeBytes = wholeBytes;
    this.#buffer = Buffer.allocUnsafeSlow(Math.min(wholeBytes, FIRST_BYTES));
  }

  /** Bytes that have come. */
  get length(): number {
    return this.#length;
  }

  get isWhole(): boolean {
    return this.#length === this.#wholeBytes;
  }

  /** Copies what of the piece is the message's, and gives how much that is. */
  push(piece: Buffer): number {
    const bytes = Math.min(piece.length, this.#wholeBytes - this.#length);
    this.#grow(this.#length + bytes);
    piece.copy(this.#buffer, this.#length, 0, bytes);
    this.#length += bytes;
    return bytes;
  }

  /** The message, once it is whole. */
  take(): Buffer {
    return this.#buffer;
  }

  #grow(toBytes: number): void {
    if (toBytes <= this.#buffer.length) {
      return;
    }
    const isProved = toBytes >= this.#wholeBytes * PROVED_SHARE;
    const grown = Buffer.allocUnsafeSlow(
      isProved ? this.#wholeBytes : Math.min(this.#wholeBytes, 2 * Math.max(toBytes, this.#buffer.length)),
    );
    this.#buffer.copy(grown, 0, 0, this.#length);
    this.#buffer = grown;
  }
}
