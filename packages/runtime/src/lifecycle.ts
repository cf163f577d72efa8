import { describeError, toWeightlineError, WeightlineError } from "./error.ts";

/** Something that was started and can be stopped. */
export interface Part {
  name: string;
  /** Ends within `graceMs`; called once. */
  stop(graceMs: number): Promise<void> | void;
}

/** Collects parts as they start, and stops them in reverse. */
export interface Lifecycle {
  /** Adds a part that has started. */
  add(part: Part): void;
  /**
   * Stops all parts, the last first, each within `graceMs`. A part that fails, or takes longer, is reported with its name and
   * does not keep the others.
   */
  stop(graceMs: number): Promise<void>;
}

/** A part that cuts its own work short at the end of its grace gets so long to say so. */
const OVERRUN_MS = 1000;

/** `onError` is told once of each part that did not stop cleanly. */
export function createLifecycle(onError: (part: string, error: unknown) => void): Lifecycle {
  const parts: Part[] = [];
  return {
    add: (part) => parts.push(part),
    async stop(graceMs) {
      for (const part of parts.splice(0).reverse()) {
        const timeout = Promise.withResolvers<never>();
        const limitMs = graceMs + OVERRUN_MS;
        const timer = setTimeout(
          () =>
            timeout.reject(
              new WeightlineError("DeadlineExceeded", `it did not stop within ${limitMs} ms, and is left behind`),
            ),
          limitMs,
        );
        try {
          await Promise.race([part.stop(graceMs), timeout.promise]);
        } catch (error) {
          onError(part.name, error);
        }
        clearTimeout(timer);
      }
    },
  };
}

/** A running program. */
export interface RunningProgram {
  /** Settles when the program fails by itself; undefined fields never settle it. */
  failed: Promise<never>;
  stop(): Promise<void>;
}

/** Exit codes of daemons: 0 a clean stop, 1 a failure, 130 a second signal. */
const EXIT_FAILED = 1;
const EXIT_CUT_SHORT = 130;

/**
 * Runs a daemon: starts it, waits for SIGTERM or SIGINT or its failure, stops it. A second signal ends it at once. A fault
 * that nobody caught ends it too, with its cause on standard error.
 */
export async function runProgram(name: string, start: () => Promise<RunningProgram>): Promise<void> {
  const complain = (error: unknown) => {
    const known = toWeightlineError(error);
    process.stderr.write(`${name}: ${describeError(known)}\n`);
    if (known.code === "Internal" && known.cause instanceof Error) {
      process.stderr.write(`${known.cause.stack ?? known.cause.message}\n`);
    }
  };
  const signal = Promise.withResolvers<void>();
  let signals = 0;
  const onSignal = () => {
    signals += 1;
    if (signals > 1) {
      process.exit(EXIT_CUT_SHORT);
    }
    signal.resolve();
  };
  process.on("SIGTERM", onSignal);
  process.on("SIGINT", onSignal);
  for (const event of ["uncaughtException", "unhandledRejection"] as const) {
    process.on(event, (error: unknown) => {
      complain(error);
      process.exit(EXIT_FAILED);
    });
  }
  let code = 0;
  try {
    const program = await start();
    try {
      await Promise.race([signal.promise, program.failed]);
    } catch (error) {
      complain(error);
      code = EXIT_FAILED;
    }
    await program.stop();
  } catch (error) {
    complain(error);
    code = EXIT_FAILED;
  }
  process.exit(code);
}
