import type { MoverReport } from "@weightline/rdma-native";

/** Seconds of a transfer's parts once it is open; they follow each other and add up to its time. */
export interface Phases {
  layoutS: number;
  firstByteS: number;
  receivingS: number;
  finishingS: number;
}

/** Tells a transfer's parts apart by the mover's reports: exact to the time between two of them, 50 ms. */
export interface PhaseClock {
  saw(report: Pick<MoverReport, "totalBytes" | "verifiedBytes" | "networkBytes">, atMs: number): void;
  /** It ended, well or not. */
  end(atMs: number): void;
  phases(nowMs: number): Phases;
}

/** `startMs`, as all times, on the monotonic clock. */
export function createPhaseClock(startMs: number): PhaseClock {
  let layoutAt: number | undefined;
  let firstByteAt: number | undefined;
  let allAt: number | undefined;
  let endAt: number | undefined;
  const seconds = (from: number | undefined, to: number | undefined, now: number) =>
    from === undefined ? 0 : ((to ?? endAt ?? now) - from) / 1000;
  return {
    saw({ totalBytes, verifiedBytes, networkBytes }, at) {
      // The mover knows the size from the layout.
      if (totalBytes > 0n) {
        layoutAt ??= at;
        firstByteAt ??= networkBytes > 0n ? at : undefined;
        allAt ??= verifiedBytes >= totalBytes ? at : undefined;
      }
    },
    end(at) {
      endAt = at;
      // It was over before the first report could tell its parts apart.
      if (layoutAt === undefined) {
        layoutAt = startMs;
        firstByteAt = startMs;
      }
    },
    phases: (now) => ({
      layoutS: seconds(startMs, layoutAt, now),
      firstByteS: seconds(layoutAt, firstByteAt, now),
      receivingS: seconds(firstByteAt, allAt, now),
      finishingS: seconds(allAt, undefined, now),
    }),
  };
}
