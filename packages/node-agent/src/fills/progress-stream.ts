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

/** What is wanted, with the progress until it is here. Consume `stream` to its end, then await `held`. `onBegin`: as in Acquirer. */
export function progressStream(
  acquirer: Acquirer,
  wanted: Wanted,
  signal: AbortSignal,
  onBegin?: () => () => void,
): { held: Promise<Acquired>; stream: AsyncIterable<Progress> } {
  const here = acquirer.held(wanted);
  if (here !== undefined) {
    return { held: Promise.resolve({ holding: here, outcome: "held" }), stream: none() };
  }
  const { fill, outcome } = acquirer.fill(wanted, onBegin);
  const left = new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  const held = Promise.race([fill.done, left]).then((holding) => ({ holding, outcome }));
  held.catch(() => undefined);
  return { held, stream: watchFill(fill, signal) };
}

async function* none(): AsyncGenerator<Progress> {}
