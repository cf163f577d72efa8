import { OrderedList, Place } from "@weightline/runtime";

interface Waiting {
  /** By performance.now(). */
  endsAtMs: number;
  fail(): void;
}

/**
 * Gives what ends commands that take longer than `timeoutMs`, with an error that says so. The first that began is the first
 * to end: one timer does for all. ioredis's own `commandTimeout` has one for each, and takes it off the command's record with
 * `delete`, for which V8 makes that record a table of its own: a tenth of a call's time, and most of what outlives it.
 */
export function createCommandDeadlines(timeoutMs: number): <T>(command: Promise<T>) => Promise<T> {
  const waiting = new OrderedList<Waiting>();
  let isTimed = false;

  const time = (ms: number) => {
    isTimed = true;
    setTimeout(endLate, ms).unref();
  };
  const endLate = () => {
    isTimed = false;
    const now = performance.now();
    for (let first = waiting.first; first !== undefined; first = waiting.first) {
      if (first.endsAtMs > now) {
        time(first.endsAtMs - now);
        return;
      }
      first.fail();
    }
  };

  return (command) =>
    new Promise((resolve, reject) => {
      const place = new Place<Waiting>({
        endsAtMs: performance.now() + timeoutMs,
        fail() {
          waiting.delete(place);
          reject(new Error(`Command timed out after ${timeoutMs} ms`));
        },
      });
      waiting.add(place);
      if (!isTimed) {
        time(timeoutMs);
      }
      command.then(
        (reply) => {
          waiting.delete(place);
          resolve(reply);
        },
        (error: unknown) => {
          waiting.delete(place);
          reject(error);
        },
      );
    });
}
