import type { Logger } from "./logging.ts";

/** Writes lines that strangers can cause: so many in a period, then one that counts those left out. */
export interface BoundedLog {
  warn(facts: Record<string, unknown>, message: string): void;
  info(facts: Record<string, unknown>, message: string): void;
}

export interface BoundedLogOptions {
  log: Logger;
  /** Lines of one message in a period. */
  linesMax: number;
  periodMs: number;
}

interface Period {
  lines: number;
  leftOut: number;
}

/** Messages are few and fixed; what differs between strangers belongs into the facts. */
export function createBoundedLog({ log, linesMax, periodMs }: BoundedLogOptions): BoundedLog {
  const periods = new Map<string, Period>();

  const write = (level: "warn" | "info", facts: Record<string, unknown>, message: string) => {
    const running = periods.get(message);
    if (running !== undefined && running.lines >= linesMax) {
      running.leftOut += 1;
      return;
    }
    log[level](facts, message);
    if (running !== undefined) {
      running.lines += 1;
      return;
    }
    const period: Period = { lines: 1, leftOut: 0 };
    periods.set(message, period);
    setTimeout(() => {
      periods.delete(message);
      if (period.leftOut > 0) {
        log[level]({ left_out: period.leftOut, period_ms: periodMs }, message);
      }
    }, periodMs).unref();
  };

  return {
    warn: (facts, message) => write("warn", facts, message),
    info: (facts, message) => write("info", facts, message),
  };
}
