import { execFileSync } from "node:child_process";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { NativeError, native } from "@weightline/rdma-native";
import t from "tap";
import {
  createTestMover,
  loadHolding,
  newId,
  newTicket,
  OrderError,
  pullBody,
  pullOrder,
  removeStore,
  writeModel,
} from "./native-helpers.ts";

const CHUNK = 65536;
const models = mkdtempSync(`${tmpdir()}/weightline-models-`);
const parent = createTestMover();
const child = createTestMover();
t.teardown(async () => {
  parent.close();
  child.close();
  await removeStore(parent.store);
  await removeStore(child.store);
  rmSync(models, { recursive: true });
});

const MEBIBYTE = 1 << 20;

async function failure(promise: Promise<unknown>): Promise<OrderError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof OrderError) {
      return error;
    }
    throw error;
  }
  throw new Error("it did not fail");
}

function segment(store: string, id: string): string {
  return `${store}/holdings/${id}/files/model.safetensors`;
}

t.test("load, pull, check, evict: the same bytes, the same object digest", async (t) => {
  const path = `${models}/model.safetensors`;
  const bytes = writeModel(path, 5 * MEBIBYTE + 123);
  const loaded = await loadHolding(parent, path);
  t.ok(readFileSync(segment(parent.store, loaded.id)).equals(bytes), "the file is kept byte for byte");
  const order = await pullOrder(parent, loaded);
  const done = await child.order(order);
  t.same(done.objectDigest, loaded.objectDigest, "one object");
  t.ok(readFileSync(segment(child.store, order.holdingId)).equals(bytes));
  t.equal(done.verifiedChunks, BigInt(Math.ceil(bytes.length / 65536)));
  t.equal(done.refusedChunks, 0n);
  t.throws(
    () => openSync(segment(child.store, order.holdingId), "r+"),
    { code: "EPERM" },
    "complete files are immutable",
  );

  const trusted = await child.order({
    kind: "check",
    holdingId: order.holdingId,
    trustFlag: true,
    chunks: [],
    objectDigest: loaded.objectDigest,
  });
  t.equal(trusted.readBytes, 0n, "flagged files are not read again");
  t.same(trusted.objectDigest, loaded.objectDigest);
  const read = await child.order({
    kind: "check",
    holdingId: order.holdingId,
    trustFlag: false,
    chunks: [],
    objectDigest: loaded.objectDigest,
  });
  t.equal(read.readBytes, BigInt(bytes.length));
  t.same(read.wrongChunks, []);

  await sleep(300);
  t.equal(
    parent.events.filter(({ kind }) => kind === "served").reduce((sum, event) => sum + (event.sentBytes ?? 0n), 0n),
    BigInt(bytes.length),
    "what was sent is reported",
  );

  const evicted = await child.order({ kind: "evict", holdingId: order.holdingId, onlyIfFree: true });
  t.ok((evicted.freedBytes ?? 0n) >= BigInt(bytes.length));
  t.same(readdirSync(`${child.store}/holdings`), []);
  t.equal(
    (await child.order({ kind: "evict", holdingId: order.holdingId, onlyIfFree: true })).freedBytes,
    0n,
    "every order may be given again",
  );
});

t.test("a holding that somebody has mapped is not evicted unasked, and waits when asked", async (t) => {
  const path = `${models}/mapped.safetensors`;
  writeModel(path, MEBIBYTE);
  const { id } = await loadHolding(child, path);
  const file = `${child.store}/holdings/${id}/files/mapped.safetensors`;
  const descriptor = openSync(file, "r");
  t.equal((await failure(child.order({ kind: "evict", holdingId: id, onlyIfFree: true }))).fault.code, "InUse");
  t.ok(readdirSync(`${child.store}/holdings`).includes(id), "nothing changed");
  let done = false;
  const pending = child.order({ kind: "evict", holdingId: id, onlyIfFree: false }).then((report) => {
    done = true;
    return report;
  });
  await sleep(300);
  t.notOk(done, "it waits for the last user");
  closeSync(descriptor);
  t.ok(((await pending).freedBytes ?? 0n) >= BigInt(MEBIBYTE));
});

t.test("relay: a child reads a holding whose own bytes are still coming", async (t) => {
  const path = `${models}/relay.safetensors`;
  const bytes = writeModel(path, 40 * MEBIBYTE);
  const loaded = await loadHolding(parent, path);
  const middle = createTestMover();
  t.teardown(async () => {
    middle.close();
    await removeStore(middle.store);
  });
  const first = await pullOrder(parent, loaded);
  const filling = middle.order(first);
  let second: Awaited<ReturnType<typeof pullOrder>> | undefined;
  for (let attempt = 0; second === undefined && attempt < 200; attempt++) {
    await sleep(1);
    if (readdirSync(`${middle.store}/holdings`).includes(first.holdingId)) {
      second = await pullOrder(middle, { ...loaded, id: first.holdingId });
    }
  }
  t.ok(second, "the middle node has begun");
  if (second !== undefined) {
    const end = await child.order(second);
    t.same(end.objectDigest, loaded.objectDigest);
    t.ok(readFileSync(`${child.store}/holdings/${second.holdingId}/files/relay.safetensors`).equals(bytes));
  }
  await filling;
});

t.test("resume: only the missing chunks come", async (t) => {
  const path = `${models}/resume.safetensors`;
  const bytes = writeModel(path, 60 * MEBIBYTE);
  const loaded = await loadHolding(parent, path);
  const order = await pullOrder(parent, loaded);
  let cancelledAt = 0;
  const cancelled = await failure(
    child.order(order, (report, id) => {
      if (report.verifiedBytes > 0n && cancelledAt === 0) {
        cancelledAt = performance.now();
        child.cancel(id);
      }
    }),
  ).catch(() => undefined);
  if (cancelled === undefined) {
    t.comment("the transfer was over before it could be cancelled");
    return;
  }
  t.equal(cancelled.fault.code, "Cancelled");
  const { verifiedBytes } = cancelled.report;
  t.ok(verifiedBytes < BigInt(bytes.length), "it was not whole yet");
  const again = await child.order(await pullOrder(parent, loaded, { holdingId: order.holdingId }));
  t.ok(
    again.networkBytes < BigInt(bytes.length) - verifiedBytes + BigInt(MEBIBYTE),
    "what was verified did not come again",
  );
  t.same(again.objectDigest, loaded.objectDigest);
});

t.test(
  "a flipped byte at the parent: refused, reported, never written; the parent learns of its damage and is repaired",
  async (t) => {
    const path = `${models}/damage.safetensors`;
    const bytes = writeModel(path, 4 * MEBIBYTE);
    const loaded = await loadHolding(parent, path);
    const file = `${parent.store}/holdings/${loaded.id}/files/damage.safetensors`;
    const clean = await child.order(await pullOrder(parent, loaded));
    execFileSync("chattr", ["-i", file]);
    const descriptor = openSync(file, "r+");
    const at = 3 * 65536 + 5;
    writeSync(descriptor, Buffer.from([(bytes[at] ?? 0) ^ 1]), 0, 1, at);
    closeSync(descriptor);

    const order = await pullOrder(parent, loaded, { streams: 1 });
    const refused = await failure(child.order(order));
    t.equal(refused.fault.code, "Corrupt");
    t.equal(refused.report.distrustPeer, true);
    t.equal(refused.report.refusedChunks, 1n);
    await sleep(200);
    const damage = parent.events.find(({ kind, holdingId }) => kind === "damage" && holdingId === loaded.id);
    t.same(damage?.wrongChunks, [3n], "the parent digested its own copy and found the chunk");
    const later = await failure(child.order(await pullOrder(parent, loaded)));
    t.equal(later.fault.code, "Unavailable", "a damaged holding is served no more");

    const repair = await parent.order({ kind: "repair", holdingId: loaded.id });
    t.same(repair.wrongChunks, [3n]);
    const back = await parent.order(
      await pullOrder(child, { ...loaded, id: clean.holdingId }, { holdingId: loaded.id }),
    );
    t.equal(back.verifiedChunks, 1n, "only the wrong chunk came");
    t.same(back.objectDigest, loaded.objectDigest);
    t.ok(readFileSync(file).equals(bytes));
  },
);

t.test("tickets: used once, within their time, with the right secret, for one holding", async (t) => {
  const path = `${models}/ticket.safetensors`;
  writeModel(path, MEBIBYTE);
  const loaded = await loadHolding(parent, path);
  const order = await pullOrder(parent, loaded, { streams: 1 });
  await child.order(order);
  t.equal(
    (await failure(child.order({ ...order, holdingId: newId() }))).fault.code,
    "PermissionDenied",
    "a used ticket",
  );
  t.equal(
    (await failure(child.order(pullBody(parent.address, loaded, [newTicket()])))).fault.code,
    "PermissionDenied",
    "an unknown ticket",
  );
  const ticket = newTicket();
  await parent.order({ kind: "grant", holdingId: loaded.id, ticket, ttlMs: 50, child: "c" });
  await sleep(120);
  t.equal(
    (await failure(child.order(pullBody(parent.address, loaded, [ticket])))).fault.code,
    "PermissionDenied",
    "an expired ticket",
  );
  const other = newTicket();
  await parent.order({ kind: "grant", holdingId: loaded.id, ticket: other, ttlMs: 5000, child: "c" });
  t.equal(
    (await failure(child.order(pullBody(parent.address, loaded, [{ ...other, secret: newTicket().secret }])))).fault
      .code,
    "PermissionDenied",
    "a wrong secret",
  );
  await child.order(pullBody(parent.address, loaded, [other]));
  await parent.order({ kind: "grant", holdingId: loaded.id, ticket: newTicket(), ttlMs: 5000, child: "c" });
  await parent.order({ kind: "revoke", holdingId: loaded.id });
});

t.test("a file that shrinks, is written to or is replaced between scan and load ends the load", async (t) => {
  const path = `${models}/changing.safetensors`;
  const attempt = async (change: () => void) => {
    writeModel(path, 2 * MEBIBYTE);
    const id = newId();
    const { scanned } = await parent.order({ kind: "scan", holdingId: id, path, loadRoot: "/", algorithm: "xxh3-128" });
    change();
    const failed = await failure(
      parent.order({ kind: "load", holdingId: id, files: scanned?.files ?? [], threads: 1 }),
    );
    await parent.order({ kind: "evict", holdingId: id, onlyIfFree: false });
    return failed.fault;
  };
  const shrunk = await attempt(() => truncateSync(path, MEBIBYTE));
  t.equal(shrunk.code, "Refused");
  t.match(shrunk.message, /changed while it was loaded/);
  t.equal(shrunk.field, path);
  const touched = await attempt(() => {
    const descriptor = openSync(path, "r+");
    writeSync(descriptor, "x", 5000);
    closeSync(descriptor);
  });
  t.match(touched.message, /it was written to/);
  const replaced = await attempt(() => {
    const copy = readFileSync(path);
    rmSync(path);
    writeFileSync(`${models}/other`, "keeps the old inode's number in use");
    writeFileSync(path, copy);
  });
  t.equal(replaced.code, "Refused");
  const gone = await attempt(() => rmSync(path));
  t.match(gone.message, /it is gone/);
});

t.test("two objects are never mixed in one holding", async (t) => {
  writeModel(`${models}/one.safetensors`, MEBIBYTE);
  writeModel(`${models}/two.safetensors`, 2 * MEBIBYTE);
  const one = await loadHolding(parent, `${models}/one.safetensors`);
  const two = await loadHolding(parent, `${models}/two.safetensors`);
  const order = await pullOrder(parent, one);
  await child.order(order);
  const mixed = await failure(child.order(await pullOrder(parent, two, { holdingId: order.holdingId })));
  t.equal(mixed.fault.code, "InvalidArgument");
  t.match(mixed.fault.message, /never mixed/);
});

t.test("orders with nonsense fail with the field named, and nothing else is disturbed", async (t) => {
  t.equal(
    (
      await failure(
        parent.order({
          kind: "check",
          holdingId: newId(),
          trustFlag: true,
          chunks: [],
          objectDigest: new Uint8Array(),
        }),
      )
    ).fault.code,
    "NotFound",
  );
  for (const holdingId of ["", "../../etc", "Z".repeat(32), "a".repeat(31)]) {
    t.equal(
      (await failure(parent.order({ kind: "repair", holdingId }))).fault.code,
      "InvalidArgument",
      JSON.stringify(holdingId),
    );
  }
  t.throws(() => native.moverOrder(parent.handle, { kind: "fly", id: 1, holdingId: newId() } as never), {
    code: "InvalidArgument",
    field: "kind",
  });
  t.throws(() => native.moverOrder(parent.handle, { kind: "check", id: 2 } as never), {
    code: "InvalidArgument",
    field: "holdingId",
  });
  const fifo = `${models}/pipe.safetensors`;
  execFileSync("mkfifo", [fifo]);
  t.match(
    (
      await failure(
        parent.order({ kind: "scan", holdingId: newId(), path: fifo, loadRoot: "/", algorithm: "xxh3-128" }),
      )
    ).fault.message,
    /FIFO/,
  );
});

t.test("a port that is taken is named with its flag", async (t) => {
  const port = Number(parent.address.split(":").at(-1));
  t.throws(() => createTestMover(port), { code: "InUse", field: "--data-port", value: String(port) });
});

t.test("a closed mover is unusable, and closing twice is harmless", async (t) => {
  const mover = createTestMover();
  mover.close();
  mover.close();
  t.throws(() => native.moverAddress(mover.handle), { code: "Closed" });
  t.throws(() => native.moverAddress({} as never), { code: "InvalidArgument" });
  t.throws(() => native.moverAddress(null as never), NativeError);
  await removeStore(mover.store);
});

t.test(
  "a check of chunks that are not there: refused when there never will be, not wrong when they are still to come",
  async (t) => {
    const path = `${models}/checked.safetensors`;
    const bytes = writeModel(path, 4 * CHUNK);
    const loaded = await loadHolding(parent, path);
    const check = (holdingId: string, chunks: bigint[]) =>
      parent.order({ kind: "check", holdingId, trustFlag: false, chunks, objectDigest: new Uint8Array() });
    const count = BigInt(Math.ceil(bytes.length / CHUNK));
    t.same((await check(loaded.id, [0n, count - 1n])).wrongChunks, []);
    for (const chunk of [count, 2n ** 63n, 2n ** 64n - 1n]) {
      const { fault } = await failure(check(loaded.id, [0n, chunk]));
      t.match(fault, { code: "InvalidArgument", field: "chunks", value: String(chunk), limit: `below ${count}` });
    }
    const unfilled = newId();
    await parent.order({ kind: "scan", holdingId: unfilled, path, loadRoot: "/", algorithm: "xxh3-128" });
    t.same((await check(unfilled, [0n, 1n])).wrongChunks, []);
    // And neither is called damaged: both are served.
    for (const id of [loaded.id, unfilled]) {
      await parent.order({ kind: "grant", holdingId: id, ticket: newTicket(), ttlMs: 100, child: "c" });
      t.same((await check(id, [])).wrongChunks, []);
    }
  },
);

t.test("orders that have ended do not count: a thousand, each given when the last is done", async (t) => {
  for (let i = 0; i < 1000; i++) {
    await parent.order({ kind: "revoke", holdingId: newId() });
  }
  t.pass("none was refused");
});
