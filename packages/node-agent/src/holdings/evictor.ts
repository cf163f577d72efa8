import { type Logger, toWeightlineError, WeightlineError } from "@weightline/runtime";
import { persistentOrder } from "../fills/persistent-order.ts";
import type { MoverClient } from "../mover/mover-client.ts";
import { type Holding, modelNameOf } from "./holding.ts";
import type { HoldingRegistry } from "./holding-registry.ts";

/** Takes holdings' memory back. */
export interface Evictor {
  /**
   * Evicts one on request. Settles when its memory is free, or after `patienceMs` with `pending` true: it returns when the
   * last user leaves then. Who asks has checked leases.
   */
  evict(holding: Holding, patienceMs: number): Promise<{ freedBytes: number; pending: boolean }>;
  /** Unasked: evicts what nobody uses until `bytes` are free. Never what is leased, read, mapped or filling. */
  makeRoom(bytes: number, except: Holding): Promise<boolean>;
  /** Evicts one that its own fill gives up; settles when its memory is free. */
  giveUp(holding: Holding): Promise<void>;
  /** Unasked: evicts this one unless somebody has it open or mapped; true when its memory is free. */
  evictUnused(holding: Holding): Promise<boolean>;
  /** Deletes a folder that has no record, or one that cannot be used. */
  discardFolder(id: string): Promise<void>;
}

export interface EvictorOptions {
  registry: HoldingRegistry;
  mover: MoverClient;
  log: Logger;
  /** True when another node is known to hold the whole object. */
  heldElsewhere: (holding: Holding) => Promise<boolean>;
  /** Ends a running fill of the holding. */
  cancelFill: (holding: Holding) => Promise<void>;
  /** Forgets descriptor tickets. */
  revoke: (holding: Holding) => void;
}

const RETRY_MS = 500;

/** Nobody that the agent knows of uses it. */
function isUnused({ leases, readers, freeing }: Holding): boolean {
  return leases === 0 && readers === 0 && freeing === undefined;
}

/** May go unasked: what is filling is wanted by somebody. */
function isIdle(holding: Holding): boolean {
  return (holding.record.state === "complete" || holding.record.state === "damaged") && isUnused(holding);
}

export function createEvictor({ registry, mover, log, heldElsewhere, cancelFill, revoke }: EvictorOptions): Evictor {
  /** Evictions that wait for the last user, by holding. */
  const running = new Map<string, Promise<number>>();

  /** Gives the order until it is done: a mover that dies in between is followed by another. */
  const carryOut = async (holding: Holding): Promise<number> => {
    while (true) {
      try {
        const report = await mover.order({ kind: "evict", holdingId: holding.id, onlyIfFree: false });
        const freed = Number(report.freedBytes ?? 0n);
        registry.remove(holding.id);
        log.info({ holding: holding.id, freed_bytes: freed }, "evicted");
        return freed;
      } catch (error) {
        if (mover.closed()) {
          throw error;
        }
        log.warn({ holding: holding.id, error: toWeightlineError(error).message }, "eviction goes on");
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS).unref());
      }
    }
  };

  const begin = async (holding: Holding, byOwnFill = false): Promise<number> => {
    const known = running.get(holding.id);
    if (known !== undefined) {
      return known;
    }
    const eviction = (async () => {
      if (!byOwnFill) {
        await cancelFill(holding);
      }
      revoke(holding);
      try {
        await registry.apply(holding, "evict");
      } catch (error) {
        // A full tmpfs has no room for the record either. Killed now, the next start finds files missing and evicts it then.
        if (holding.record.state !== "evicting") {
          throw error;
        }
        log.warn({ holding: holding.id, error: toWeightlineError(error).message }, "evicted without its record");
      }
      return carryOut(holding);
    })();
    running.set(holding.id, eviction);
    try {
      return await eviction;
    } finally {
      running.delete(holding.id);
    }
  };

  const freeIfUnused = async (holding: Holding, why: string): Promise<boolean> => {
    try {
      // The mover looks whether anybody has it mapped, and deletes it in the same breath.
      await persistentOrder(mover, { kind: "evict", holdingId: holding.id, onlyIfFree: true });
    } catch (error) {
      if (error instanceof WeightlineError && error.code === "InUse") {
        return false;
      }
      throw error;
    }
    log.info({ holding: holding.id, model: modelNameOf(holding), freed_bytes: holding.charge }, why);
    registry.remove(holding.id);
    return true;
  };

  const tryFree = async (holding: Holding, why = "evicted to make room"): Promise<boolean> => {
    if (!isUnused(holding)) {
      return false;
    }
    revoke(holding);
    const ended = Promise.withResolvers<void>();
    holding.freeing = ended.promise;
    try {
      return await freeIfUnused(holding, why);
    } finally {
      holding.freeing = undefined;
      ended.resolve();
    }
  };

  return {
    async evict(holding, patienceMs) {
      const eviction = begin(holding);
      const timer = Promise.withResolvers<undefined>();
      const timeout = setTimeout(() => timer.resolve(undefined), patienceMs);
      const freed = await Promise.race([eviction, timer.promise]);
      clearTimeout(timeout);
      eviction.catch((error: unknown) => log.error({ error: toWeightlineError(error).message }, "eviction failed"));
      return freed === undefined ? { freedBytes: 0, pending: true } : { freedBytes: freed, pending: false };
    },
    async makeRoom(bytes, except) {
      const idle = registry.all().filter((holding) => holding !== except && isIdle(holding));
      // Where all of it would not be enough, nothing is taken from anybody.
      if (idle.reduce((sum, { charge }) => sum + charge, 0) < bytes) {
        return false;
      }
      const elsewhere = new Map(
        await Promise.all(idle.map(async (holding) => [holding.id, await heldElsewhere(holding)] as const)),
      );
      idle.sort(
        (a, b) =>
          Number(b.record.state === "damaged") - Number(a.record.state === "damaged") ||
          Number(elsewhere.get(b.id)) - Number(elsewhere.get(a.id)) ||
          a.lastUsedAt - b.lastUsedAt,
      );
      let freed = 0;
      for (const holding of idle) {
        if (freed >= bytes) {
          break;
        }
        const { charge } = holding;
        if (await tryFree(holding)) {
          freed += charge;
        }
      }
      return freed >= bytes;
    },
    async giveUp(holding) {
      await begin(holding, true);
    },
    evictUnused(holding) {
      revoke(holding);
      return tryFree(holding, "evicted: the store is above its limit");
    },
    async discardFolder(id) {
      await mover.order({ kind: "evict", holdingId: id, onlyIfFree: false });
    },
  };
}
