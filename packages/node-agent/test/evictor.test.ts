// Making room while somebody acquires: with a mover that takes its time.
import { native } from "@weightline/rdma-native";
import { type Logger, WeightlineError } from "@weightline/runtime";
import t from "tap";
import { createAcquirer } from "../src/fills/acquirer.ts";
import { createFillBoard } from "../src/fills/fill-board.ts";
import type { Wanted } from "../src/fills/wanted.ts";
import { createEvictor } from "../src/holdings/evictor.ts";
import type { Holding } from "../src/holdings/holding.ts";
import type { HoldingRegistry } from "../src/holdings/holding-registry.ts";
import { createLeaseTable } from "../src/leases/lease-table.ts";
import type { MoverClient } from "../src/mover/mover-client.ts";

const log = { info: () => undefined, warn: () => undefined, error: () => undefined } as unknown as Logger;
const wanted = (name: string): Wanted => ({ sourceId: name, rank: 0, named: undefined, label: name, modelName: name });

function makeStore(charges: Record<string, number>) {
  const holdings = new Map<string, Holding>(
    Object.entries(charges).map(([id, charge], i) => [
      id,
      {
        id,
        record: { state: "complete", identities: [] },
        charge,
        lastUsedAt: i,
        leases: 0,
        readers: 0,
      } as unknown as Holding,
    ]),
  );
  const registry = {
    all: () => [...holdings.values()],
    named: (sourceId: string) => [...holdings.values()].filter(({ id }) => id === sourceId),
    remove: (id: string) => holdings.delete(id),
    changed: () => undefined,
  } as unknown as HoldingRegistry;
  const orders: string[] = [];
  let answer = Promise.withResolvers<object>();
  const mover = {
    order: ({ holdingId }: { holdingId: string }) => {
      orders.push(holdingId);
      return answer.promise;
    },
    closed: () => false,
  } as unknown as MoverClient;
  const revoked: string[] = [];
  const evictor = createEvictor({
    registry,
    mover,
    log,
    heldElsewhere: async ({ id }) => id === "copied",
    cancelFill: async () => undefined,
    revoke: ({ id }) => void revoked.push(id),
  });
  return {
    registry,
    evictor,
    orders,
    revoked,
    holding: (id: string) => holdings.get(id) as Holding,
    settle(error?: Error) {
      const before = answer;
      answer = Promise.withResolvers();
      if (error === undefined) {
        before.resolve({});
      } else {
        before.reject(error);
      }
    },
  };
}

const ticks = async () => {
  for (let i = 0; i < 20; i++) {
    await Promise.resolve();
  }
};
const inUse = () => new WeightlineError("InUse", "mapped");

t.test("while it may go it is not leased; when it stays, who acquired meanwhile gets it", async (t) => {
  const store = makeStore({ one: 10 });
  const table = createLeaseTable(store.registry, { info: () => undefined, warn: () => undefined });
  const owner = table.enter(native.openProcess(process.pid));
  let pulls = 0;
  const puller = {
    pull: async () => {
      pulls += 1;
      throw new WeightlineError("NotFound", "nobody holds it");
    },
  };
  const acquirer = createAcquirer(store.registry, createFillBoard<Holding>(), puller);
  const one = store.holding("one");
  const room = store.evictor.makeRoom(5, {} as Holding);
  await ticks();
  t.same(store.orders, ["one"], "the mover has the order");
  t.throws(() => table.grant(one, owner, "g"), { code: "Unavailable", message: /about to be evicted/ });
  t.equal(acquirer.held(wanted("one")), undefined);
  const { fill } = acquirer.fill(wanted("one"));
  store.settle(inUse());
  t.equal(await room, false);
  t.equal(await fill.done, one, "it stayed: found, and nobody was asked");
  t.equal(pulls, 0);
  t.ok(table.grant(one, owner, "g"));
  table.close();

  const again = store.evictor.makeRoom(5, {} as Holding);
  await ticks();
  const late = acquirer.fill(wanted("one"));
  store.settle();
  t.equal(await again, true);
  await t.rejects(late.fill.done, { code: "NotFound" }, "it went: then others are asked");
  t.equal(pulls, 1);
  table.leave(owner);
});

t.test("nothing goes in vain, nothing that is used, copies first, then by use", async (t) => {
  const store = makeStore({ oldest: 10, leased: 10, read: 10, newest: 10, copied: 10 });
  store.holding("leased").leases = 1;
  store.holding("read").readers = 1;
  t.equal(await store.evictor.makeRoom(31, {} as Holding), false, "30 could go");
  t.same(store.orders, []);
  t.same(store.revoked, [], "tickets stay as well");
  const room = store.evictor.makeRoom(30, {} as Holding);
  for (const id of ["copied", "oldest", "newest"]) {
    await ticks();
    t.equal(store.orders.at(-1), id);
    store.settle();
  }
  t.equal(await room, true);
  t.equal(store.orders.length, 3);

  const mapped = makeStore({ a: 10, b: 10 });
  const some = mapped.evictor.makeRoom(10, {} as Holding);
  await ticks();
  mapped.settle(inUse());
  await ticks();
  t.same(mapped.orders, ["a", "b"], "the next when one is mapped");
  mapped.settle();
  t.equal(await some, true);
  t.ok(mapped.holding("a"), "and the mapped one stays");
});

t.test("what came to be used while others went is passed over", async (t) => {
  const store = makeStore({ a: 10, b: 10 });
  const room = store.evictor.makeRoom(20, {} as Holding);
  await ticks();
  store.holding("b").leases = 1;
  store.settle();
  t.equal(await room, false);
  t.same(store.orders, ["a"]);
});
