import { setTimeout as sleep } from "node:timers/promises";
import { type Logger, toWeightlineError, WeightlineError } from "@weightline/runtime";
import type { Directory } from "./directory/directory.ts";

/** What is known of the directory's backend. */
export interface BackendState {
  /** True when its last check was answered. */
  readonly ok: boolean;
  /** Monotonic ms at which it became so. */
  readonly since: number;
  /** Why it is not; "" when it is. */
  readonly reason: string;
}

/** Asks the directory's backend again and again whether it answers. */
export interface BackendWatch {
  state(): BackendState;
  /** Ends the checks; one that is on its way counts no more. */
  stop(): void;
}

/** The monotonic clock, and waits on it. */
export interface WatchClock {
  monotonicMs(): number;
  /** Ends after `ms`, or rejects when the signal is aborted. */
  sleep(ms: number, signal: AbortSignal): Promise<unknown>;
}

export interface BackendWatchOptions {
  directory: Pick<Directory, "backend" | "health">;
  log: Logger;
  /** Told of each change, and of the first state. */
  onChange: (state: BackendState) => void;
  clock?: WatchClock;
}

/** Pause between two checks. */
export const CHECK_INTERVAL_MS = 1000;
/** A backend that has not answered by then counts as lost. */
export const CHECK_TIMEOUT_MS = 1000;

const SYSTEM_CLOCK: WatchClock = {
  monotonicMs: () => performance.now(),
  sleep: (ms, signal) => sleep(ms, undefined, { signal }),
};

/** One check, with its deadline; gives why it failed, or "". An answer after the deadline is not looked at. */
async function check(directory: BackendWatchOptions["directory"], clock: WatchClock): Promise<string> {
  const timer = new AbortController();
  const timeout = clock.sleep(CHECK_TIMEOUT_MS, timer.signal).then(() => {
    throw new WeightlineError("DeadlineExceeded", `no answer within ${CHECK_TIMEOUT_MS} ms`);
  });
  // It rejects by its abort, too, when nobody waits for it any more.
  timeout.catch(() => undefined);
  try {
    await Promise.race([directory.health(), timeout]);
    return "";
  } catch (error) {
    return toWeightlineError(error).message;
  } finally {
    timer.abort();
  }
}

/**
 * Starts watching; returns when the first check is over, whatever it found: a program may start while its backend is away.
 * Logs `backend-lost` and `backend-back`, each once for each change.
 */
export async function createBackendWatch(options: BackendWatchOptions): Promise<BackendWatch> {
  const { directory, log, onChange } = options;
  const { backend } = directory;
  const clock = options.clock ?? SYSTEM_CLOCK;
  const stopping = new AbortController();
  let state: BackendState = { ok: true, since: clock.monotonicMs(), reason: "" };

  const take = (reason: string, first: boolean) => {
    const ok = reason === "";
    if (ok === state.ok && !first) {
      // The same outage may change its face; who asks gets the newest.
      state = ok ? state : { ...state, reason };
      return;
    }
    const now = clock.monotonicMs();
    const awayMs = Math.round(now - state.since);
    state = { ok, since: now, reason };
    if (!ok) {
      log.error({ event: "backend-lost", backend, error: reason }, "the directory's backend does not answer");
    } else if (!first) {
      log.info({ event: "backend-back", backend, away_ms: awayMs }, "the directory's backend answers again");
    }
    onChange(state);
  };

  const run = async () => {
    for (;;) {
      await clock.sleep(CHECK_INTERVAL_MS, stopping.signal);
      const reason = await check(directory, clock);
      if (stopping.signal.aborted) {
        return;
      }
      take(reason, false);
    }
  };

  take(await check(directory, clock), true);
  // Only its stop ends it.
  run().catch(() => undefined);
  return { state: () => state, stop: () => stopping.abort() };
}
