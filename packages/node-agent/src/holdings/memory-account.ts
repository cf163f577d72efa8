import { formatByteSize, WeightlineError } from "@weightline/runtime";
import type { StoreFolder } from "../store/store-folder.ts";
import type { Holding } from "./holding.ts";

/** Memory for holdings, by accounting: the limit holds before the first byte. */
export interface MemoryAccount {
  readonly limitBytes: number;
  usedBytes(): number;
  /**
   * Takes `charge` bytes for a holding, evicting others if it must. Throws ResourceExhausted with needed, free, path and way
   * out; nothing is taken then. A holding that has a charge already pays the difference.
   */
  reserve(holding: Holding, charge: number): Promise<void>;
  release(holding: Holding): void;
  /** Counts bytes of a folder that is not ours to touch, or that cannot be used. */
  addForeign(bytes: number): void;
}

export interface MemoryAccountOptions {
  store: StoreFolder;
  limitBytes: number;
  holdings: () => Holding[];
  /** Evicts what may go until `bytes` are free, or nothing more may; false when it could not. */
  makeRoom: (bytes: number, except: Holding) => Promise<boolean>;
}

export function createMemoryAccount({ store, limitBytes, holdings, makeRoom }: MemoryAccountOptions): MemoryAccount {
  let foreign = 0;
  let queue: Promise<unknown> = Promise.resolve();
  const used = () => {
    // Asked with every announce, by a process that is otherwise asleep: a callback for each of a thousand holdings is dear.
    let bytes = foreign;
    for (const { charge } of holdings()) {
      bytes += charge;
    }
    return bytes;
  };

  const exhausted = (needed: number, free: number, what: string, wayOut: string) =>
    new WeightlineError(
      "ResourceExhausted",
      `${formatByteSize(needed)} are needed for the holding, ${formatByteSize(Math.max(0, free))} are free in ${store.path}: ${what}`,
      { field: "--store", value: `${needed} bytes`, limit: `${Math.max(0, free)} bytes`, wayOut },
    );

  /** What is missing now: below the limit, and on the tmpfs itself (where others' files may lie). */
  const missing = async (holding: Holding, charge: number) => {
    const more = charge - holding.charge;
    const byLimit = limitBytes - used();
    const { freeBytes } = await store.space();
    // Charges of running fills are promised but not all allocated yet.
    const promised = holdings().reduce(
      (sum, other) =>
        sum +
        (other.record.state === "filling" && other !== holding ? Math.max(0, other.charge - other.verifiedBytes) : 0),
      0,
    );
    const byTmpfs = freeBytes - promised;
    return { more, byLimit, byTmpfs, short: Math.max(more - byLimit, more - byTmpfs) };
  };

  const take = async (holding: Holding, charge: number) => {
    let state = await missing(holding, charge);
    if (state.short > 0) {
      await makeRoom(state.short, holding);
      state = await missing(holding, charge);
    }
    if (state.more > state.byLimit) {
      throw exhausted(
        charge,
        state.byLimit,
        `the limit is ${formatByteSize(limitBytes)} (--memory-limit)`,
        "evict a model, or raise --memory-limit",
      );
    }
    if (state.more > state.byTmpfs) {
      throw exhausted(
        charge,
        state.byTmpfs,
        "the tmpfs itself has no more",
        "evict a model, remove other files from it, or mount it with a larger size=",
      );
    }
    holding.charge = charge;
  };

  return {
    limitBytes,
    usedBytes: used,
    reserve(holding, charge) {
      // One after another: two that ask at once must not both get the last bytes.
      const turn = queue.catch(() => undefined).then(() => take(holding, charge));
      queue = turn;
      return turn;
    },
    release(holding) {
      holding.charge = 0;
    },
    addForeign(bytes) {
      foreign += bytes;
    },
  };
}
