import { randomUUID } from "node:crypto";
import { native, type PeerProcess } from "@weightline/rdma-native";
import { type BoundedLog, WeightlineError } from "@weightline/runtime";
import type { Holding } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import { POD_LEASE_PROCESSES_MAX, POD_LEASES_MAX, TIMED_LEASES_MAX } from "../local/limits.ts";

/** A process that asks, as the kernel knows it: one for all its connections and leases, closed when none is left. */
export interface LeaseOwner {
  readonly peer: PeerProcess;
  /** Connections and leases that keep the pidfd. */
  uses: number;
  /** Of this process. */
  readonly leases: Set<Lease>;
  /** True once its end is watched. */
  watched: boolean;
}

/** A process's right to use a holding. */
export interface Lease {
  readonly id: string;
  readonly holding: Holding;
  /** Undefined for a lease of a reader on another node, which ends by time. */
  readonly owner: LeaseOwner | undefined;
  /** Whose cap it counts for; "" without an owner. */
  readonly group: string;
}

/** All leases. */
export interface LeaseTable {
  /** Throws ResourceExhausted when `group`, a pod or a process outside pods, has too many. */
  grant(holding: Holding, owner: LeaseOwner, group: string): Lease;
  /** A lease that ends by itself. */
  grantTimed(holding: Holding, ttlMs: number): Lease;
  find(id: string): Lease | undefined;
  /** False when it had ended already. Another process's lease is PermissionDenied. */
  release(id: string, owner: LeaseOwner | undefined): boolean;
  count(): number;
  /** Pids that have leases on a holding. */
  pidsOf(holding: Holding): number[];
  /** The owner for a connection's process, which is closed here when it is known already. {@link LeaseTable.leave} ends the use. */
  enter(peer: PeerProcess): LeaseOwner;
  leave(owner: LeaseOwner): void;
  /** One more use of an owner, for work that outlives its connections; {@link LeaseTable.leave} ends it. */
  stay(owner: LeaseOwner): void;
  close(): void;
}

interface GroupUse {
  leases: number;
  /** Leases by process. */
  processes: Map<LeaseOwner, number>;
}

export function createLeaseTable(registry: HoldingRegistry, log: BoundedLog): LeaseTable {
  const leases = new Map<string, Lease>();
  const timers = new Map<string, NodeJS.Timeout>();
  const owners = new Map<number, LeaseOwner>();
  const groups = new Map<string, GroupUse>();

  const leave = (owner: LeaseOwner) => {
    owner.uses -= 1;
    if (owner.uses === 0) {
      native.closeProcess(owner.peer.process);
      if (owners.get(owner.peer.pid) === owner) {
        owners.delete(owner.peer.pid);
      }
    }
  };

  const uncount = (owner: LeaseOwner, key: string) => {
    const group = groups.get(key);
    if (group === undefined) {
      return;
    }
    group.leases -= 1;
    const left = (group.processes.get(owner) ?? 0) - 1;
    if (left > 0) {
      group.processes.set(owner, left);
    } else {
      group.processes.delete(owner);
    }
    if (group.leases === 0) {
      groups.delete(key);
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
      lease.owner.leases.delete(lease);
      uncount(lease.owner, lease.group);
      leave(lease.owner);
    }
    registry.changed();
    return true;
  };

  const checkHolding = (holding: Holding) => {
    if (holding.record.state !== "complete" || holding.freeing !== undefined) {
      const state = holding.freeing === undefined ? holding.record.state : "about to be evicted";
      throw new WeightlineError("Unavailable", `holding ${holding.id} is ${state}`, {
        field: "holding",
        value: holding.id,
        wayOut: "acquire it again",
      });
    }
  };

  const checkGroup = (owner: LeaseOwner, key: string) => {
    const group = groups.get(key);
    if (group === undefined) {
      return;
    }
    if (group.leases >= POD_LEASES_MAX) {
      throw new WeightlineError("ResourceExhausted", `${key} has ${group.leases} leases`, {
        field: "leases",
        value: String(group.leases),
        limit: String(POD_LEASES_MAX),
        wayOut: "release leases that are not used any more",
      });
    }
    if (!group.processes.has(owner) && group.processes.size >= POD_LEASE_PROCESSES_MAX) {
      throw new WeightlineError("ResourceExhausted", `${key} has ${group.processes.size} processes with leases`, {
        field: "processes",
        value: String(group.processes.size),
        limit: String(POD_LEASE_PROCESSES_MAX),
        wayOut: "let fewer processes acquire, and others inherit what they mapped",
      });
    }
  };

  const add = (lease: Lease): Lease => {
    leases.set(lease.id, lease);
    lease.holding.leases += 1;
    lease.holding.lastUsedAt = performance.now();
    registry.changed();
    return lease;
  };

  const watch = (owner: LeaseOwner) => {
    if (owner.watched) {
      return;
    }
    native.watchProcess(owner.peer.process, () => {
      // A call that was under way may still get a lease: that is watched anew, and told at once.
      owner.watched = false;
      const ended = [...owner.leases];
      if (ended.length > 0) {
        log(
          "info",
          { event: "leases-ended", process: owner.peer.pid, leases: ended.length },
          "a process with leases ended",
        );
      }
      for (const lease of ended) {
        end(lease);
      }
    });
    owner.watched = true;
  };

  return {
    grant(holding, owner, group) {
      checkHolding(holding);
      checkGroup(owner, group);
      // First: where it cannot be watched there is no lease, which nothing would end.
      watch(owner);
      const lease = add({ id: randomUUID(), holding, owner, group });
      owner.uses += 1;
      owner.leases.add(lease);
      const use = groups.get(group) ?? { leases: 0, processes: new Map() };
      groups.set(group, use);
      use.leases += 1;
      use.processes.set(owner, (use.processes.get(owner) ?? 0) + 1);
      return lease;
    },
    grantTimed(holding, ttlMs) {
      checkHolding(holding);
      if (timers.size >= TIMED_LEASES_MAX) {
        throw new WeightlineError("ResourceExhausted", `peers have ${timers.size} leases for reads`, {
          field: "leases",
          value: String(timers.size),
          limit: String(TIMED_LEASES_MAX),
          wayOut: "release reads that are over, or wait until they expire",
        });
      }
      const lease = add({ id: randomUUID(), holding, owner: undefined, group: "" });
      timers.set(lease.id, setTimeout(() => end(lease), ttlMs).unref());
      return lease;
    },
    find: (id) => leases.get(id),
    release(id, owner) {
      const lease = leases.get(id);
      if (lease === undefined) {
        return false;
      }
      if (lease.owner !== owner) {
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
    enter(peer) {
      const known = owners.get(peer.pid);
      // Two that live at once cannot have one number: the same process.
      if (known !== undefined && native.processAlive(known.peer.process)) {
        native.closeProcess(peer.process);
        known.uses += 1;
        return known;
      }
      const owner: LeaseOwner = { peer, uses: 1, leases: new Set(), watched: false };
      owners.set(peer.pid, owner);
      return owner;
    },
    leave,
    stay(owner) {
      owner.uses += 1;
    },
    close() {
      for (const lease of [...leases.values()]) {
        end(lease);
      }
    },
  };
}
