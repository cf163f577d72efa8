/** What one of several may take of the event loop for long: one who took a time waits three times as long. */
const SHARE = 0.25;
/** Milliseconds of the loop that one may take at once after it was quiet: some hundred calls. */
const CREDIT_MAX_MS = 100;
/** What it took beyond its share while it was alone, or in one call, is forgotten above this. */
const DEBT_MAX_MS = 50;
/** Who took something so lately is one whom others must not keep waiting. */
const ACTIVE_MS = 1000;
/** Accounts at which those that say nothing any more are let go; where all say something, the oldest. */
const ACCOUNTS_MAX = 4096;

/**
 * Shares the event loop's time among those for whom something is done: while there are several, none takes more than a
 * quarter of it for long, so that there is idle time in which the others are answered at once. One who is alone takes all.
 */
export interface LoopRation {
  /** Something is done for the key in this turn of the loop, for which it was not asked to wait, or has waited. */
  spend(key: string): void;
  /** Milliseconds until the key may go on; 0: now. */
  waitMs(key: string): number;
}

interface Account {
  /** Milliseconds of the loop that may be taken at once; negative: taken too much. */
  creditMs: number;
  /** When the credit was so. */
  atMs: number;
  /** What was done for it in this turn of the loop. */
  count: number;
}

/**
 * A turn's time, from the first thing that was done in it to its end, is shared by those for whom something was done, in
 * proportion to how much. `now` (milliseconds that never go back) is a test's own clock.
 */
export function createLoopRation(now: () => number = () => performance.now()): LoopRation {
  /** Those who come and go keep theirs until its credit is full again. */
  const accounts = new Map<string, Account>();
  /** Those for whom something was done in this turn, and since when. */
  const spending = new Set<Account>();
  let sinceMs = 0;
  /** The last for whom something was done, and when that was last so for any other. */
  let last: Account | undefined;
  let lastAtMs = Number.NEGATIVE_INFINITY;
  let othersAtMs = Number.NEGATIVE_INFINITY;

  const refill = (account: Account, atMs: number) => {
    account.creditMs = Math.min(account.creditMs + (atMs - account.atMs) * SHARE, CREDIT_MAX_MS);
    account.atMs = atMs;
  };

  const prune = (atMs: number) => {
    for (const [key, account] of accounts) {
      refill(account, atMs);
      if (account.creditMs === CREDIT_MAX_MS && account.count === 0) {
        accounts.delete(key);
      }
    }
    for (const key of accounts.keys()) {
      if (accounts.size < ACCOUNTS_MAX) {
        return;
      }
      accounts.delete(key);
    }
  };

  const settle = () => {
    const atMs = now();
    const total = [...spending].reduce((sum, { count }) => sum + count, 0);
    for (const account of spending) {
      refill(account, atMs);
      account.creditMs = Math.max(account.creditMs - ((atMs - sinceMs) * account.count) / total, -DEBT_MAX_MS);
      account.count = 0;
    }
    spending.clear();
  };

  return {
    spend(key) {
      const atMs = now();
      let account = accounts.get(key);
      if (account === undefined) {
        if (accounts.size >= ACCOUNTS_MAX) {
          prune(atMs);
        }
        account = { creditMs: CREDIT_MAX_MS, atMs, count: 0 };
        accounts.set(key, account);
      }
      if (spending.size === 0) {
        sinceMs = atMs;
        setImmediate(settle);
      }
      spending.add(account);
      account.count += 1;
      if (account !== last) {
        othersAtMs = lastAtMs;
        last = account;
      }
      lastAtMs = atMs;
    },
    waitMs(key) {
      const account = accounts.get(key);
      const atMs = now();
      if (account === undefined || atMs - (account === last ? othersAtMs : lastAtMs) > ACTIVE_MS) {
        return 0;
      }
      refill(account, atMs);
      return Math.max(0, -account.creditMs / SHARE);
    },
  };
}
