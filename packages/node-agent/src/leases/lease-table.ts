import { randomUUID } from "node:crypto";
import { native, type PeerProcess } from "@weightline/rdma-native";
import { type Logger, WeightlineError } from "@weightline/runtime";
import type { Holding } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";

/** A process that asks, as the kernel knows it. Shared by its connection and its leases; closed when neither is left. */
export interface LeaseOwner {
  readonly peer: PeerProcess;
  /** Connections and leases that keep the pidfd. */
  uses: number;
  /** True once its end is watched. */
  watched: boolean;
}

/** A process's right to use a holding. */
export interface Lease {
  readonly id: string;
  readonly holding: Holding;
  /** Undefined for a lease of a reader on another node, which ends by time. */
  readonly owner: LeaseOwner | undefined;
}

/** All leases. */
export interface LeaseTable {
  grant(holding: Holding, owner: LeaseOwner): Lease;
  /** A lease that ends by itself. */
  grantTimed(holding: Holding, ttlMs: number): Lease;
  find(id: string): Lease | undefined;
  /** False when it had ended already. Another process's lease is PermissionDenied. */
  release(id: string, owner: LeaseOwner | undefined): boolean;
  count(): number;
  /** Pids that have leases on a holding. */
  pidsOf(holding: Holding): number[];
  /** Counts a connection's use of its owner; the returned function ends it. */
  hold(owner: LeaseOwner): () => void;
  close(): void;
}

export function createLeaseTable(registry: HoldingRegistry, log: Logger): LeaseTable {
  const leases = new Map<string, Lease>();
  const timers = new Map<string, NodeJS.Timeout>();

  const letGo = (owner: LeaseOwner) => {
    owner.uses -= 1;
    if (owner.uses === 0) {
      native.closeProcess(owner.peer.process);
    }
  };

  const end = (lease: Lease) => {
    if (!leases.delete(lease.id)) {
      return false;
    }
    clearTimeout(timers.get(lease.id));
    timers.delete(lease.id);
    lease.holding.leases -= 1;
    lease.holding.lastUsedAt = performance.now();
    if (lease.owner !== undefined) {
      letGo(lease.owner);
    }
    registry.changed();
    return true;
  };

  const add = (holding: Holding, owner: LeaseOwner | undefined): Lease => {
    if (holding.record.state !== "complete") {
      throw new WeightlineError("Unavailable", `holding ${holding.id} is ${holding.record.state}`, {
        field: "holding",
        value: holding.id,
        wayOut: "acquire it again",
      });
    }
    const lease: Lease = { id: randomUUID(), holding, owner };
    leases.set(lease.id, lease);
    holding.leases += 1;
    holding.lastUsedAt = performance.now();
    registry.changed();
    return lease;
  };

  const watch = (owner: LeaseOwner) => {
    if (owner.watched) {
      return;
    }
    owner.watched = true;
    native.watchProcess(owner.peer.process, () => {
      const ended = [...leases.values()].filter((lease) => lease.owner === owner);
      log.info({ event: "leases-ended", process: owner.peer.pid, leases: ended.length }, "a process with leases ended");
      for (const lease of ended) {
        end(lease);
      }
    });
  };

  return {
    grant(holding, owner) {
      const lease = add(holding, owner);
      owner.uses += 1;
      watch(owner);
      return lease;
    },
    grantTimed(holding, ttlMs) {
      const lease = add(holding, undefined);
      timers.set(lease.id, setTimeout(() => end(lease), ttlMs).unref());
      return lease;
    },
    find: (id) => leases.get(id),
    release(id, owner) {
      const lease = leases.get(id);
      if (lease === undefined) {
        return false;
      }
      if (lease.owner !== undefined && lease.owner.peer.pid !== owner?.peer.pid) {
        throw new WeightlineError("PermissionDenied", "this lease belongs to another process", {
          field: "lease_id",
          value: id,
          wayOut: "release it from the process that acquired it",
        });
      }
      return end(lease);
    },
    count: () => leases.size,
    pidsOf: (holding) => [
      ...new Set(
        [...leases.values()].flatMap((lease) =>
          lease.holding === holding && lease.owner !== undefined ? [lease.owner.peer.pid] : [],
        ),
      ),
    ],
    hold(owner) {
      owner.uses += 1;
      let held = true;
      return () => {
        if (held) {
          held = false;
          letGo(owner);
        }
      };
    },
    close() {
      for (const lease of [...leases.values()]) {
        end(lease);
      }
    },
  };
}
