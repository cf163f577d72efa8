/** An estimate of Redis's clock, made of its replies alone: steps of this machine's clock do not touch it. */
export interface RedisClock {
  /** A reply that was sent for and came at these monotonic ms said this time (Unix ms). */
  observe(sentAt: number, receivedAt: number, redisMs: number): void;
  /** Redis's time at these monotonic ms; this machine's own while no reply has come. */
  at(monotonicMs: number): number;
}

export function createRedisClock(unixMs: () => number, monotonicMs: () => number): RedisClock {
  // The script ran between sending and receiving, so Redis's clock less ours lies between these.
  let least = Number.NEGATIVE_INFINITY;
  let most = Number.POSITIVE_INFINITY;
  return {
    observe(sentAt, receivedAt, redisMs) {
      // Redis tells whole milliseconds: the truth is up to one later.
      const low = redisMs - receivedAt;
      const high = redisMs + 1 - sentAt;
      if (low > most || high < least) {
        // A clock was set, or drifted apart since: what was known before is worth nothing.
        least = low;
        most = high;
      } else {
        least = Math.max(least, low);
        most = Math.min(most, high);
      }
    },
    at: (time) => time + (Number.isFinite(least) ? (least + most) / 2 : unixMs() - monotonicMs()),
  };
}
