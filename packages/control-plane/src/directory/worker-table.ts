import type { SourceStatus } from "@weightline/proto/p2p";
import { offsetOf, PackedBytes, samePiece } from "./packed-bytes.ts";
import type { HeldWorker, Life, StockState } from "./worker.ts";

/** A worker's bytes: its encoded SourceInstanceRef before and after what heartbeats change, and its encoded metadata. */
export interface WorkerBytes {
  head: Uint8Array;
  tail: Uint8Array;
  /** Empty where a directory does not keep it here. */
  metadata: Uint8Array;
}

/** Columns of a row in the numbers. */
const RANK = 0;
const STATUS = 1;
const HEAD_BYTES = 2;
const TAIL_BYTES = 3;
const METADATA_BYTES = 4;
const NUMBERS = 5;
/** Columns of a row in the times. */
const UPDATED_AT_MS = 0;
const FRESH_UNTIL = 1;
const GONE_AT = 2;
const LOAD = 3;
const ADDRESS = 4;
const TIMES = 5;

const FIRST_ROWS = 4;

/**
 * The workers of one source, a row each, in few large arrays: 100,000 workers as objects of several parts would keep the
 * collector busy, and its heap large. Rows are numbers that their owner keeps; one that was removed is given anew only
 * after `reuse`.
 */
export class WorkerTable {
  /** Of each row; "" for one that was removed. */
  readonly ids: string[] = [];
  /** The holding's worker of a row; undefined for a stock worker's. */
  readonly held: (HeldWorker | undefined)[] = [];
  readonly #bytes = new PackedBytes();
  readonly #unused: number[] = [];
  #numbers = new Uint32Array(FIRST_ROWS * NUMBERS);
  #times = new Float64Array(FIRST_ROWS * TIMES);

  /** A row for a worker. Its other columns are to be set before they are read. */
  add(workerId: string): number {
    const row = this.#unused.pop() ?? this.ids.length;
    this.ids[row] = workerId;
    this.held[row] = undefined;
    if ((row + 1) * NUMBERS > this.#numbers.length) {
      const rows = Math.ceil(1.5 * row);
      this.#numbers = grown(this.#numbers, new Uint32Array(rows * NUMBERS));
      this.#times = grown(this.#times, new Float64Array(rows * TIMES));
    }
    this.#numbers.fill(0, row * NUMBERS, (row + 1) * NUMBERS);
    return row;
  }

  remove(row: number): void {
    this.#release(row);
    this.ids[row] = "";
    this.held[row] = undefined;
  }

  /** Nobody has the removed row any more. */
  reuse(row: number): void {
    this.#unused.push(row);
  }

  rank(row: number): number {
    return this.#numbers[row * NUMBERS + RANK] as number;
  }
  status(row: number): SourceStatus {
    return this.#numbers[row * NUMBERS + STATUS] as SourceStatus;
  }
  updatedAtMs(row: number): number {
    return this.#times[row * TIMES + UPDATED_AT_MS] as number;
  }
  freshUntil(row: number): number {
    return this.#times[row * TIMES + FRESH_UNTIL] as number;
  }
  goneAt(row: number): number {
    return this.#times[row * TIMES + GONE_AT] as number;
  }
  load(row: number): number | undefined {
    const load = this.#times[row * TIMES + LOAD] as number;
    return Number.isNaN(load) ? undefined : load;
  }
  headBytes(row: number): number {
    return this.#numbers[row * NUMBERS + HEAD_BYTES] as number;
  }
  tailBytes(row: number): number {
    return this.#numbers[row * NUMBERS + TAIL_BYTES] as number;
  }

  state(row: number): StockState {
    return {
      rank: this.rank(row),
      status: this.status(row),
      load: this.load(row),
      updatedAtMs: this.updatedAtMs(row),
      freshUntil: this.freshUntil(row),
      goneAt: this.goneAt(row),
    };
  }

  setState(row: number, { rank, status, load, ...life }: StockState): void {
    this.#numbers[row * NUMBERS + RANK] = rank;
    this.#numbers[row * NUMBERS + STATUS] = status;
    this.#times[row * TIMES + LOAD] = load ?? Number.NaN;
    this.setLife(row, life);
  }

  setLife(row: number, { updatedAtMs, freshUntil, goneAt }: Life): void {
    const at = row * TIMES;
    this.#times[at + UPDATED_AT_MS] = updatedAtMs;
    this.#times[at + FRESH_UNTIL] = freshUntil;
    this.#times[at + GONE_AT] = goneAt;
  }

  /** Keeps a copy of the bytes. */
  setBytes(row: number, { head, tail, metadata }: WorkerBytes): void {
    const total = head.length + tail.length + metadata.length;
    if (!samePiece(this.#totalBytes(row), total)) {
      this.#release(row);
      this.#times[row * TIMES + ADDRESS] = this.#bytes.allocate(total);
    }
    const at = row * NUMBERS;
    this.#numbers[at + HEAD_BYTES] = head.length;
    this.#numbers[at + TAIL_BYTES] = tail.length;
    this.#numbers[at + METADATA_BYTES] = metadata.length;
    const address = this.#address(row);
    const page = this.#bytes.page(address);
    const offset = offsetOf(address);
    page.set(head, offset);
    page.set(tail, offset + head.length);
    page.set(metadata, offset + head.length + tail.length);
  }

  /** A copy of head and tail. */
  instance(row: number): Uint8Array {
    return this.#copied(row, 0, this.headBytes(row) + this.tailBytes(row));
  }

  /** A copy of the metadata. */
  metadata(row: number): Uint8Array {
    return this.#copied(row, this.headBytes(row) + this.tailBytes(row), this.#totalBytes(row));
  }

  /** Writes the head into a buffer with room for it, and gives the position after it. */
  copyHead(row: number, target: Buffer, at: number): number {
    const address = this.#address(row);
    const offset = offsetOf(address);
    return at + this.#bytes.page(address).copy(target, at, offset, offset + this.headBytes(row));
  }

  copyTail(row: number, target: Buffer, at: number): number {
    const address = this.#address(row);
    const offset = offsetOf(address) + this.headBytes(row);
    return at + this.#bytes.page(address).copy(target, at, offset, offset + this.tailBytes(row));
  }

  #copied(row: number, from: number, to: number): Uint8Array {
    const address = this.#address(row);
    const offset = offsetOf(address);
    return Buffer.from(this.#bytes.page(address).subarray(offset + from, offset + to));
  }

  #address(row: number): number {
    return this.#times[row * TIMES + ADDRESS] as number;
  }

  #totalBytes(row: number): number {
    const at = row * NUMBERS;
    const numbers = this.#numbers;
    return (
      (numbers[at + HEAD_BYTES] as number) +
      (numbers[at + TAIL_BYTES] as number) +
      (numbers[at + METADATA_BYTES] as number)
    );
  }

  #release(row: number): void {
    const total = this.#totalBytes(row);
    if (total > 0) {
      this.#bytes.release(this.#address(row), total);
      this.#numbers.fill(0, row * NUMBERS + HEAD_BYTES, (row + 1) * NUMBERS);
    }
  }
}

function grown<Column extends Uint32Array | Float64Array>(column: Column, larger: Column): Column {
  larger.set(column);
  return larger;
}
