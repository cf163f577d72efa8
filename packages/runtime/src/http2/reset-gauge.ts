/** How many streams of a connection may be reset: a burst, and then so many a second. */
export class ResetGauge {
  readonly #burstCount: number;
  readonly #perS: number;
  #left: number;
  #atMs = performance.now();

  constructor(burstCount: number, perS: number) {
    this.#burstCount = burstCount;
    this.#perS = perS;
    this.#left = burstCount;
  }

  /** Counts one; false when it is one too many. */
  take(): boolean {
    const now = performance.now();
    this.#left = Math.min(this.#burstCount, this.#left + ((now - this.#atMs) / 1000) * this.#perS) - 1;
    this.#atMs = now;
    return this.#left >= 0;
  }
}
