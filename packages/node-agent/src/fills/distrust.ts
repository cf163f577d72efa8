import { type Candidate, objectKey } from "./candidates.ts";

/** Peers that sent what they should not have, by object: left alone for a time that grows with each repetition. */
export interface Distrust {
  add(candidate: Candidate): void;
  /** False again when the time is over, when the peer has another holding of the object, or when it has mended this one. */
  has(candidate: Candidate): boolean;
}

export interface DistrustOptions {
  /** Monotonic ms; performance.now by default. */
  now?: () => number;
}

export const DISTRUST_MIN_MS = 60_000;
export const DISTRUST_MAX_MS = 3_600_000;
const GROWTH = 4;
/** After so many times a peer's word that it mended its copy counts no more, only the time does. */
export const REPAIRS_BELIEVED = 3;
/** Peers and objects that are remembered. */
const ENTRIES_MAX = 4096;

interface Entry {
  holdingId: string;
  repairs: number;
  times: number;
  until: number;
}

export function createDistrust({ now = () => performance.now() }: DistrustOptions = {}): Distrust {
  const entries = new Map<string, Entry>();
  const keyOf = (candidate: Candidate) => `${candidate.node}|${objectKey(candidate.holding)}`;
  return {
    add(candidate) {
      const key = keyOf(candidate);
      const times = (entries.get(key)?.times ?? 0) + 1;
      const { holdingId, repairs } = candidate.holding;
      entries.delete(key);
      const restMs = Math.min(DISTRUST_MAX_MS, DISTRUST_MIN_MS * GROWTH ** (times - 1));
      entries.set(key, { holdingId, repairs, times, until: now() + restMs });
      const oldest = entries.keys().next().value;
      if (entries.size > ENTRIES_MAX && oldest !== undefined) {
        entries.delete(oldest);
      }
    },
    has(candidate) {
      const entry = entries.get(keyOf(candidate));
      if (entry === undefined || now() >= entry.until) {
        return false;
      }
      const { holdingId, repairs } = candidate.holding;
      const mended = holdingId !== entry.holdingId || repairs !== entry.repairs;
      return !mended || entry.times >= REPAIRS_BELIEVED;
    },
  };
}
