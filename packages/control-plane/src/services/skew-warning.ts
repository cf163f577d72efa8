import type { Logger } from "@weightline/runtime";

/** What is worth a warning, as agents have it for themselves. */
const SKEW_MAX_MS = 5000;
/** Workers that are remembered as warned of; then the oldest may be told of again. */
const REMEMBERED_MAX = 1000;

/**
 * Warns once of each stock worker whose own time (Unix ms, 0 for none) is far from the control plane's. Freshness counts
 * from receipt, so nothing else comes of it.
 */
export function createSkewWarning(log: Logger): (workerId: string, workerMs: number) => void {
  const warned = new Set<string>();
  return (workerId, workerMs) => {
    const aheadMs = workerMs - Date.now();
    if (workerMs <= 0 || Math.abs(aheadMs) <= SKEW_MAX_MS || warned.has(workerId)) {
      return;
    }
    warned.add(workerId);
    const oldest = warned.values().next().value;
    if (warned.size > REMEMBERED_MAX && oldest !== undefined) {
      warned.delete(oldest);
    }
    log.warn(
      { event: "clock-skew", worker: workerId.slice(0, 100), ahead_ms: aheadMs },
      "a worker's clock is not the control plane's; its freshness counts from receipt",
    );
  };
}
