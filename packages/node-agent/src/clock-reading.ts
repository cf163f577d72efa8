/** The control plane's clock and this node's in the middle of asking for it, in Unix ms. */
export interface ClockReading {
  theirsMs: number;
  oursMs: number;
  /** How long the question took, in ms of the monotonic clock: the reading is no better than half of it. */
  roundTripMs: number;
}

/** Field case 37: what is worth a warning. Nothing depends on it: lifetimes run on the server's and the monotonic clock. */
export const SKEW_MAX_MS = 5000;

/** How far this node's clock is ahead of the control plane's, in ms; negative when it is behind. */
export function aheadMs({ oursMs, theirsMs }: ClockReading): number {
  return oursMs - theirsMs;
}

/** True when the clocks are further apart than {@link SKEW_MAX_MS}, whatever the answer's way took. */
export function isSkewed(reading: ClockReading): boolean {
  return Math.abs(aheadMs(reading)) - reading.roundTripMs / 2 > SKEW_MAX_MS;
}
