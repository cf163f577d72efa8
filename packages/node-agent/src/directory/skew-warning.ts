import type { Logger } from "@weightline/runtime";
import { aheadMs, type ClockReading, isSkewed } from "../clock-reading.ts";

/**
 * Warns once when this node's clock and the control plane's are apart, and again only after they agreed. Takes each
 * announce's reading.
 */
export function createSkewWarning(log: Logger): (reading: ClockReading) => void {
  let warned = false;
  return (reading) => {
    const skewed = isSkewed(reading);
    if (skewed && !warned) {
      log.warn(
        { event: "clock-skew", ahead_ms: Math.round(aheadMs(reading)) },
        "this node's clock is not the control plane's: times in logs do not fit together, nothing else depends on it",
      );
    }
    warned = skewed;
  };
}
