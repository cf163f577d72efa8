/**
 * Many small pieces of bytes in few pages outside the JavaScript heap: the collector neither copies nor marks them. A piece
 * that is released is used again for the next one of about its size; pages themselves are kept.
 */
export class PackedBytes {
  readonly #pages: Buffer[] = [];
  /** Size of a piece -> addresses of released ones. */
  readonly #released = new Map<number, number[]>();
  /** Numbers of pages that were one large piece each and are gone. */
  readonly #noPages: number[] = [];
  #smallBytes = 0;
  /** Where the next small piece goes, and what is left there. */
  #next = 0;
  #room = 0;

  /** The address of a new piece; `bytes` is its size, to be given back on release. */
  allocate(bytes: number): number {
    if (bytes > SMALL_MAX_BYTES) {
      return this.#addPage(bytes);
    }
    const size = pieceSize(bytes);
    const again = this.#released.get(size)?.pop();
    if (again !== undefined) {
      return again;
    }
    if (this.#room < size) {
      this.#room = Math.min(PAGE_MAX_BYTES, Math.max(PAGE_MIN_BYTES, size, this.#smallBytes * GROWTH));
      this.#room -= this.#room % PIECE_STEP_BYTES;
      this.#next = this.#addPage(this.#room);
      this.#smallBytes += this.#room;
    }
    const address = this.#next;
    this.#next += size;
    this.#room -= size;
    return address;
  }

  release(address: number, bytes: number): void {
    if (bytes > SMALL_MAX_BYTES) {
      const page = Math.floor(address / PAGE_SPAN);
      this.#pages[page] = NO_BYTES;
      this.#noPages.push(page);
      return;
    }
    const size = pieceSize(bytes);
    const released = this.#released.get(size);
    if (released === undefined) {
      this.#released.set(size, [address]);
    } else {
      released.push(address);
    }
  }

  /** The page of an address; the piece begins at offsetOf(address) in it. */
  page(address: number): Buffer {
    return this.#pages[Math.floor(address / PAGE_SPAN)] as Buffer;
  }

  #addPage(bytes: number): number {
    const page = this.#noPages.pop() ?? this.#pages.length;
    this.#pages[page] = Buffer.allocUnsafeSlow(bytes);
    return page * PAGE_SPAN;
  }
}

/** A piece's place in its page. */
export function offsetOf(address: number): number {
  return address % PAGE_SPAN;
}

/** Whether a piece of one size has room for another. */
export function samePiece(bytes: number, others: number): boolean {
  return bytes <= SMALL_MAX_BYTES && others <= SMALL_MAX_BYTES && pieceSize(bytes) === pieceSize(others);
}

/** More than any page: an address is the page's number times it, and the offset. */
const PAGE_SPAN = 2 ** 32;
/** A larger piece is a page of its own. */
const SMALL_MAX_BYTES = 16 * 1024;
const PIECE_STEP_BYTES = 32;
const PAGE_MIN_BYTES = 1024;
const PAGE_MAX_BYTES = 256 * 1024;
/** A new page's share of all before it: what is not used yet stays a small part. */
const GROWTH = 0.5;
const NO_BYTES = Buffer.alloc(0);

function pieceSize(bytes: number): number {
  return Math.ceil(bytes / PIECE_STEP_BYTES) * PIECE_STEP_BYTES;
}
