import type { LOG_LEVELS, Logger } from "./logging.ts";

/** A line of the log with the stable name of what happened; docs/events.md lists the names. */
export interface EventFields {
  event: string;
  [field: string]: unknown;
}

/** Writes one line, or counts it as left out. */
export type BoundedLog = (level: (typeof LOG_LEVELS)[number], fields: EventFields, message: string) => void;

/** What others can provoke may write so many lines of one event a second. */
export const BOUNDED_LINES_PER_SECOND = 10;
const WINDOW_MS = 1000;

interface Window {
  startedAt: number;
  lines: number;
  leftOut: number;
}

/**
 * A log for what callers and peers can provoke: of each event at most {@link BOUNDED_LINES_PER_SECOND}, then one line that
 * says how many were left out. `fields.event` must be one of a few fixed names: each keeps a little state.
 */
export function createBoundedLog(log: Logger): BoundedLog {
  const windows = new Map<string, Window>();
  return (level, fields, message) => {
    if (!log.isLevelEnabled(level)) {
      return;
    }
    const { event } = fields;
    let window = windows.get(event);
    // One that left something out ends by its timer, which tells.
    if (window === undefined || (window.leftOut === 0 && performance.now() - window.startedAt >= WINDOW_MS)) {
      window = { startedAt: performance.now(), lines: 0, leftOut: 0 };
      windows.set(event, window);
    }
    if (window.lines < BOUNDED_LINES_PER_SECOND) {
      window.lines += 1;
      log[level](fields, message);
      return;
    }
    window.leftOut += 1;
    if (window.leftOut === 1) {
      const full = window;
      setTimeout(
        () => {
          windows.delete(event);
          log[level]({ event, left_out: full.leftOut }, "more of this event came within a second and are left out");
        },
        Math.max(1, WINDOW_MS - (performance.now() - window.startedAt)),
      ).unref();
    }
  };
}
