import { OfferEndedError } from "../offers/offer.ts";
import type { Acquired, Acquirer } from "./acquirer.ts";
import type { Progress, RunningFill } from "./fill-board.ts";
import type { Wanted } from "./wanted.ts";

/** A progress message at most so often. */
const INTERVAL_MS = 200;

/** The progress of a fill, until it is done or the caller leaves; the fill itself goes on. */
export async function* watchFill<Result>(fill: RunningFill<Result>, signal: AbortSignal): AsyncGenerator<Progress> {
  let ended = false;
  const stop = Promise.withResolvers<void>();
  const end = () => {
    ended = true;
    stop.resolve();
  };
  fill.done.then(end, end);
  signal.addEventListener("abort", end, { once: true });
  let changed = false;
  const unwatch = fill.watch(() => {
    changed = true;
  });
  try {
    yield { ...fill.progress };
    while (!ended) {
      const timer = Promise.withResolvers<void>();
      const timeout = setTimeout(timer.resolve, INTERVAL_MS);
      await Promise.race([timer.promise, stop.promise]);
      clearTimeout(timeout);
      if (changed && !ended) {
        changed = false;
        yield { ...fill.progress };
      }
    }
  } finally {
    unwatch();
    signal.removeEventListener("abort", end);
  }
}

/**
 * Brings what is wanted: yields the progress until it is here, then returns it. A pod's offer that comes to nothing is no
 * failure of those who waited for it: they look for another holder. `waiting`: asked for what ends the wait, when there is
 * one. `onBegin`: as in Acquirer.
 */
export async function* acquireStream(
  acquirer: Acquirer,
  wanted: Wanted,
  waiting: () => AbortSignal,
  onBegin?: () => () => void,
): AsyncGenerator<Progress, Acquired> {
  const here = acquirer.held(wanted);
  if (here !== undefined) {
    return { holding: here, outcome: "held" };
  }
  const signal = waiting();
  for (;;) {
    const { fill, outcome } = acquirer.fill(wanted, onBegin);
    yield* watchFill(fill, signal);
    signal.throwIfAborted();
    try {
      return { holding: await fill.done, outcome };
    } catch (error) {
      if (!(error instanceof OfferEndedError)) {
        throw error;
      }
    }
  }
}
