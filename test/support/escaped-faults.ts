// What would end a program: errors that nobody caught. A test that looks for them takes them in its place.
import type { Test } from "tap";

/** Those that come until the test's end. */
export function collectEscapedFaults(t: Pick<Test, "teardown">): unknown[] {
  const faults: unknown[] = [];
  const note = (error: unknown) => faults.push(error);
  process.on("uncaughtException", note);
  process.on("unhandledRejection", note);
  t.teardown(() => {
    process.off("uncaughtException", note);
    process.off("unhandledRejection", note);
  });
  return faults;
}
