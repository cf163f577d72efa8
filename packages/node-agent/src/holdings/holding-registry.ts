import { computeSourceId } from "@weightline/proto";
import { WeightlineError } from "@weightline/runtime";
import { type HoldingRecord, type NamedIdentity, writeRecord } from "../store/holding-record.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import { type Holding, keyOf } from "./holding.ts";
import { type HoldingEvent, nextState } from "./holding-state.ts";

/** All holdings of the node, and the one place where their state changes: in the record first, then in memory. */
export interface HoldingRegistry {
  /** A new one with the bytes that were reserved for it, its record written. */
  add(id: string, record: HoldingRecord, charge: number): Promise<Holding>;
  /** One that was found in the store. */
  adopt(id: string, record: HoldingRecord): Holding;
  get(id: string): Holding | undefined;
  all(): Holding[];
  /** Those with this name, complete ones first, then by lower digest. */
  named(sourceId: string, rank: number): Holding[];
  withSource(sourceId: string): Holding[];
  withDigest(objectDigest: string): Holding[];
  /** Applies an event; throws Internal for one that cannot happen in the holding's state. */
  apply(holding: Holding, event: HoldingEvent, change?: (record: HoldingRecord) => void): Promise<void>;
  addIdentity(holding: Holding, named: NamedIdentity): Promise<void>;
  removeIdentity(holding: Holding, key: string): Promise<void>;
  /** Forgets one whose files are gone. */
  remove(id: string): void;
  /** Called after every change that others can see. */
  onChange(listener: () => void): void;
  changed(): void;
  /** Names like this one, for errors. */
  near(modelName: string): string[];
}

function compare(a: Holding, b: Holding): number {
  const rank = (holding: Holding) =>
    holding.record.state === "complete" ? 0 : holding.record.state === "filling" ? 1 : 2;
  return rank(a) - rank(b) || a.record.objectDigest.localeCompare(b.record.objectDigest);
}

export function createHoldingRegistry(store: StoreFolder): HoldingRegistry {
  const holdings = new Map<string, Holding>();
  const listeners: Array<() => void> = [];
  /** Writes to one record follow each other. */
  const writes = new Map<string, Promise<void>>();

  const changed = () => {
    for (const listener of listeners) {
      listener();
    }
  };

  /** Writes what `make` gives when it is its turn; the holding's own record by default. */
  const save = (holding: Holding, make = () => holding.record): Promise<void> => {
    const before = writes.get(holding.id) ?? Promise.resolve();
    const write = before
      .catch(() => undefined)
      .then(async () => {
        const { state } = holding.record;
        const record = make();
        await writeRecord(store.holdingFolder(holding.id), record);
        // An eviction that began meanwhile writes the record after this.
        if (holding.record.state === state) {
          Object.assign(holding.record, record);
        }
      });
    writes.set(holding.id, write);
    return write;
  };

  const adopt = (id: string, record: HoldingRecord): Holding => {
    const holding: Holding = {
      id,
      record,
      layout: undefined,
      verifiedBytes: 0,
      parent: "",
      charge: 0,
      lastUsedAt: performance.now(),
      leases: 0,
      readers: 0,
      suspect: false,
      repairs: 0,
    };
    holdings.set(id, holding);
    return holding;
  };

  return {
    async add(id, record, charge) {
      const holding = adopt(id, record);
      holding.charge = charge;
      await save(holding);
      changed();
      return holding;
    },
    adopt,
    get: (id) => holdings.get(id),
    all: () => [...holdings.values()],
    named(sourceId, rank) {
      const key = `${sourceId}/${rank}`;
      return [...holdings.values()]
        .filter(({ record }) => record.identities.some((named) => keyOf(named) === key))
        .sort(compare);
    },
    withSource: (sourceId) =>
      [...holdings.values()].filter(({ record }) =>
        record.identities.some(({ identity }) => computeSourceId(identity) === sourceId),
      ),
    withDigest: (digest) =>
      [...holdings.values()].filter(({ record }) => record.objectDigest === digest && record.state === "complete"),
    async apply(holding, event, change) {
      const next = nextState(holding.record.state, event);
      if (next === undefined) {
        throw new WeightlineError(
          "Internal",
          `holding ${holding.id} is ${holding.record.state}: "${event}" cannot happen to it`,
        );
      }
      if (next === "complete") {
        // What others are told must survive a kill: nobody attaches it before the record says so.
        await save(holding, () => {
          if (nextState(holding.record.state, event) !== next) {
            return holding.record;
          }
          const record = { ...holding.record, state: next };
          change?.(record);
          return record;
        });
        if (holding.record.state !== next) {
          throw new WeightlineError("Cancelled", `holding ${holding.id} is ${holding.record.state} by now`);
        }
      } else {
        // The other way round: nobody attaches what is on its way out.
        holding.record.state = next;
        change?.(holding.record);
        await save(holding);
      }
      changed();
    },
    async addIdentity(holding, named) {
      if (!holding.record.identities.some((other) => keyOf(other) === keyOf(named))) {
        holding.record.identities.push(named);
        await save(holding);
        changed();
      }
    },
    async removeIdentity(holding, key) {
      holding.record.identities = holding.record.identities.filter((named) => keyOf(named) !== key);
      await save(holding);
      changed();
    },
    remove(id) {
      holdings.delete(id);
      writes.delete(id);
      changed();
    },
    onChange: (listener) => void listeners.push(listener),
    changed,
    near(modelName) {
      const wanted = modelName.toLowerCase();
      const names = [...holdings.values()].flatMap(({ record }) =>
        record.identities.map(({ identity, rank }) => describeName(identity.modelName, identity.revision, rank)),
      );
      return [...new Set(names)]
        .filter(
          (name) => name.toLowerCase().includes(wanted) || wanted.includes(name.split(" ")[0]?.toLowerCase() ?? name),
        )
        .slice(0, 5);
    },
  };
}

/** "m (revision r, rank 0)". */
export function describeName(modelName: string, revision: string, rank: number): string {
  return `${modelName} (${revision === "" ? "no revision" : `revision ${revision}`}, rank ${rank})`;
}
