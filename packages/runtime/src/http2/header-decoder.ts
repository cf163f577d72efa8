import { decodeHuffman } from "./huffman.ts";
import { STATIC_FIELDS, STATIC_FIELDS_COUNT } from "./static-table.ts";

/** What a client's headers may take. */
export interface HeaderLimits {
  /**
   * Of the dynamic table, each entry counted with 32 more (RFC 7541, section 4.1): what SETTINGS_HEADER_TABLE_SIZE says. A
   * client that was not told yet goes by 4096, so less needs one that was.
   */
  tableBytes: number;
  /** Of one list: names and values, with 32 more for each pair (RFC 9113, section 6.5.2). */
  listBytes: number;
  /** Of one list. */
  pairsCount: number;
}

/** The headers of one block. */
export interface HeaderList {
  /** Name, value, name, value and so on, as they came; one character for each octet. */
  fields: string[];
  /** There were more than the limits allow; `fields` has those before. */
  tooLarge: boolean;
}

/** The block is no HPACK, or not of this connection: COMPRESSION_ERROR to HTTP/2 (RFC 9113, section 4.3). */
export class HeaderBlockError extends Error {
  override readonly name = "HeaderBlockError";
}

/** Of an entry of the dynamic table, and of a pair in a list. */
const OVERHEAD_BYTES = 32;
/** The dynamic table's size until it is told otherwise (RFC 9113, section 6.5.2). */
const FIRST_TABLE_BYTES = 4096;

/** Nothing in a block can be larger: RFC 7541 (section 5.1) leaves the limit to us. */
const INTEGER_MAX = 2 ** 28;
const CONTINUATIONS_MAX_COUNT = 5;
const CONTINUES = 0x80;
const CONTINUATION_MASK = 0x7f;
const CONTINUATION_FACTOR = 128;

/** What an instruction begins with (RFC 7541, section 6), and the bits that are left for its integer. */
const INDEXED = 0x80;
const INDEXED_MASK = 0x7f;
const LITERAL_TO_INDEX = 0x40;
const LITERAL_TO_INDEX_MASK = 0x3f;
const SIZE_UPDATE = 0x20;
const SIZE_UPDATE_MASK = 0x1f;
/** Not to index now, or never: the same to a server that passes nothing on. */
const LITERAL_MASK = 0x0f;
const HUFFMAN = 0x80;
const LENGTH_MASK = 0x7f;

/**
 * Decodes the header blocks of one connection (RFC 7541), each once and in their order. A value that the client's table has
 * costs nothing again: its string is the same one. After a HeaderBlockError the state is unknown, and the connection of no
 * more use.
 */
export class HeaderDecoder {
  readonly #limits: HeaderLimits;
  /** The dynamic table: a ring of names and values. */
  readonly #ring: string[];
  /** Of slots, of which each has a name and a value: one less than a power of two. */
  readonly #slotMask: number;
  /** The slot for the next entry; the newest one is before it. */
  #next = 0;
  #entriesCount = 0;
  #tableBytes = 0;
  /** What the client says that the table may have. */
  #tableMaxBytes: number;
  /** Where in the block we are. */
  #at = 0;

  constructor(limits: HeaderLimits) {
    this.#limits = { ...limits };
    this.#tableMaxBytes = Math.min(limits.tableBytes, FIRST_TABLE_BYTES);
    let slotsCount = 1;
    while (slotsCount * OVERHEAD_BYTES < limits.tableBytes) {
      slotsCount *= 2;
    }
    this.#slotMask = slotsCount - 1;
    this.#ring = new Array<string>(slotsCount * 2).fill("");
  }

  /** Decodes a whole block; throws HeaderBlockError. */
  decode(block: Buffer): HeaderList {
    const { listBytes, pairsCount } = this.#limits;
    const fields: string[] = [];
    let bytes = 0;
    let count = 0;
    let tooLarge = false;
    this.#at = 0;
    while (this.#at < block.length) {
      const first = block[this.#at] as number;
      let name: string;
      let value: string;
      if (first >= INDEXED) {
        const index = this.#readInteger(block, INDEXED_MASK);
        const from = index <= STATIC_FIELDS_COUNT ? STATIC_FIELDS : this.#ring;
        const at = this.#placeOf(index);
        name = from[at] as string;
        value = from[at + 1] as string;
      } else if (first >= LITERAL_TO_INDEX) {
        name = this.#readName(block, LITERAL_TO_INDEX_MASK);
        value = this.#readString(block);
        this.#add(name, value);
      } else if (first >= SIZE_UPDATE) {
        if (count > 0) {
          throw new HeaderBlockError("a table size is not at the block's start");
        }
        this.#resize(this.#readInteger(block, SIZE_UPDATE_MASK));
        continue;
      } else {
        name = this.#readName(block, LITERAL_MASK);
        value = this.#readString(block);
      }
      count += 1;
      bytes += name.length + value.length + OVERHEAD_BYTES;
      // What follows is still decoded: the next block builds on it.
      tooLarge = bytes > listBytes || count > pairsCount;
      if (!tooLarge) {
        fields.push(name, value);
      }
    }
    return { fields, tooLarge };
  }

  /** An integer that begins in this octet's low bits (RFC 7541, section 5.1). */
  #readInteger(block: Buffer, mask: number): number {
    let value = (block[this.#at++] as number) & mask;
    if (value < mask) {
      return value;
    }
    let factor = 1;
    for (let count = 0; count < CONTINUATIONS_MAX_COUNT; count++) {
      if (this.#at >= block.length) {
        throw new HeaderBlockError("an integer is cut off");
      }
      const octet = block[this.#at++] as number;
      value += (octet & CONTINUATION_MASK) * factor;
      if (octet < CONTINUES) {
        if (value > INTEGER_MAX) {
          break;
        }
        return value;
      }
      factor *= CONTINUATION_FACTOR;
    }
    throw new HeaderBlockError("an integer is too large");
  }

  #readString(block: Buffer): string {
    if (this.#at >= block.length) {
      throw new HeaderBlockError("a string is missing");
    }
    const isHuffman = (block[this.#at] as number) >= HUFFMAN;
    const length = this.#readInteger(block, LENGTH_MASK);
    const from = this.#at;
    const to = from + length;
    if (to > block.length) {
      throw new HeaderBlockError("a string is cut off");
    }
    this.#at = to;
    if (!isHuffman) {
      return block.toString("latin1", from, to);
    }
    const string = decodeHuffman(block, from, to);
    if (string === undefined) {
      throw new HeaderBlockError("a string is not of Huffman's code");
    }
    return string;
  }

  /** A literal's name: that of an index, or itself a literal. */
  #readName(block: Buffer, mask: number): string {
    const index = this.#readInteger(block, mask);
    if (index === 0) {
      return this.#readString(block);
    }
    const from = index <= STATIC_FIELDS_COUNT ? STATIC_FIELDS : this.#ring;
    return from[this.#placeOf(index)] as string;
  }

  /** Where the name of this index is, in the static table or in the ring; its value follows. */
  #placeOf(index: number): number {
    if (index > STATIC_FIELDS_COUNT) {
      const age = index - STATIC_FIELDS_COUNT;
      if (age > this.#entriesCount) {
        throw new HeaderBlockError("an index is beyond the tables");
      }
      return ((this.#next - age) & this.#slotMask) * 2;
    }
    if (index === 0) {
      throw new HeaderBlockError("an index is 0");
    }
    return index * 2 - 2;
  }

  /** One that is larger than the table empties it, and is no fault (RFC 7541, section 4.4). */
  #add(name: string, value: string): void {
    const bytes = name.length + value.length + OVERHEAD_BYTES;
    this.#shrink(this.#tableMaxBytes - bytes);
    if (bytes > this.#tableMaxBytes) {
      return;
    }
    const at = this.#next * 2;
    this.#ring[at] = name;
    this.#ring[at + 1] = value;
    this.#next = (this.#next + 1) & this.#slotMask;
    this.#entriesCount += 1;
    this.#tableBytes += bytes;
  }

  #resize(bytes: number): void {
    if (bytes > this.#limits.tableBytes) {
      throw new HeaderBlockError("a table size is above the limit");
    }
    this.#tableMaxBytes = bytes;
    this.#shrink(bytes);
  }

  /** Drops the oldest entries until the others have at most so many bytes. */
  #shrink(toBytes: number): void {
    while (this.#tableBytes > toBytes && this.#entriesCount > 0) {
      const at = ((this.#next - this.#entriesCount) & this.#slotMask) * 2;
      const name = this.#ring[at] as string;
      const value = this.#ring[at + 1] as string;
      this.#tableBytes -= name.length + value.length + OVERHEAD_BYTES;
      this.#entriesCount -= 1;
      // What is dropped is not kept in memory.
      this.#ring[at] = "";
      this.#ring[at + 1] = "";
    }
  }
}
