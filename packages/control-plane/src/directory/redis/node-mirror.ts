import { NodeState } from "@weightline/proto/common";
import { type Clock, type DirectorySize, LOST_SHOWN_MS } from "../directory.ts";
import type { NodeLife } from "../worker.ts";

/** What a replica knows of all nodes' lives. Their holdings are in the sources. */
export interface NodeMirror {
  /** The number of the last change that was read. */
  readonly version: string;
  /** The life that all workers of a node share; of a node that is not known it is over. */
  lifeOf(name: string): NodeLife;
  /** Takes what changed: rows of name, epoch, state, address, last seen and expiry (Redis's Unix ms; null for a node that is gone). */
  apply(version: string, rows: (string | null)[][], redisMs: number): void;
  counts(): DirectorySize["nodes"];
  /** Names ever seen. */
  readonly size: number;
  /** Forgets all, for it to be read again; workers that still have lives of before must go with them. */
  reset(): void;
}

/** A node's state as Redis has it. */
export function nodeStateOf(text: string | null | undefined): NodeState {
  const state = Number(text);
  return state === NodeState.DRAINING ? NodeState.DRAINING : NodeState.READY;
}

export function createNodeMirror(clock: Clock): NodeMirror {
  const nodes = new Map<string, NodeLife>();
  let version = "0";

  const lifeOf = (name: string): NodeLife => {
    let life = nodes.get(name);
    if (life === undefined) {
      life = { name, address: "", epoch: 0n, state: NodeState.READY, updatedAtMs: 0, freshUntil: 0, goneAt: 0 };
      nodes.set(name, life);
    }
    return life;
  };

  return {
    get version() {
      return version;
    },
    get size() {
      return nodes.size;
    },
    lifeOf,
    apply(next, rows, redisMs) {
      const now = clock.monotonicMs();
      version = next;
      for (const [name, epoch, state, address, lastSeen, expires] of rows) {
        if (typeof name !== "string") {
          continue;
        }
        const life = lifeOf(name);
        if (typeof expires !== "string" || typeof epoch !== "string" || !/^\d{1,20}$/.test(epoch)) {
          // Gone at once, not lost. Its workers keep the object: should it come back, they live again.
          Object.assign(life, { epoch: 0n, freshUntil: 0, goneAt: 0 });
          continue;
        }
        const goneAt = now + (Number(expires) - redisMs);
        Object.assign(life, {
          epoch: BigInt(epoch),
          state: nodeStateOf(state),
          address: address ?? "",
          updatedAtMs: Number(lastSeen),
          freshUntil: goneAt,
          goneAt,
        });
      }
    },
    counts() {
      const now = clock.monotonicMs();
      const counts = { ready: 0, draining: 0, lost: 0 };
      for (const { goneAt, state, epoch } of nodes.values()) {
        if (epoch > 0n && now - goneAt <= LOST_SHOWN_MS) {
          counts[now >= goneAt ? "lost" : state === NodeState.DRAINING ? "draining" : "ready"]++;
        }
      }
      return counts;
    },
    reset() {
      version = "0";
      nodes.clear();
    },
  };
}
