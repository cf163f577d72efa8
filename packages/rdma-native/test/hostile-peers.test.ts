import { createHmac, randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { native, type StreamTicket } from "@weightline/rdma-native";
import t from "tap";
import { eventually } from "./agent-helpers.ts";
import {
  createTestMover,
  type LoadedHolding,
  loadHolding,
  newId,
  newTicket,
  OrderError,
  pullBody,
  pullOrder,
  removeStore,
  writeModel,
} from "./native-helpers.ts";

const models = mkdtempSync(`${tmpdir()}/weightline-hostile-`);
const honest = createTestMover();
const victim = createTestMover();
const servers: Server[] = [];
const sockets = new Set<Socket>();
t.teardown(async () => {
  for (const socket of sockets) {
    socket.destroy();
  }
  for (const server of servers) {
    server.close();
  }
  honest.close();
  victim.close();
  await removeStore(honest.store);
  await removeStore(victim.store);
  rmSync(models, { recursive: true });
});

const CHUNK = 65536;
const HEADER_BYTES = 48;
const Type = {
  getLayout: 1,
  layout: 2,
  get: 3,
  chunk: 4,
  waiting: 5,
  refused: 6,
  getObject: 7,
  object: 8,
  failed: 9,
} as const;

function frame(
  type: number,
  number: bigint,
  payload: Buffer,
  digest: Uint8Array = Buffer.alloc(32),
  announced = payload.length,
): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt8(type, 0);
  header.writeUInt32LE(announced, 4);
  header.writeBigUInt64LE(number, 8);
  header.set(digest, 16);
  return Buffer.concat([header, payload]);
}

/** Bytes of a socket, in the amounts that are asked for. */
function reader(socket: Socket): (bytes: number) => Promise<Buffer> {
  let buffered = Buffer.alloc(0);
  let wake: (() => void) | undefined;
  let ended = false;
  socket.on("data", (data) => {
    buffered = Buffer.concat([buffered, data]);
    wake?.();
  });
  socket.on("close", () => {
    ended = true;
    wake?.();
  });
  socket.on("error", () => undefined);
  return async (bytes) => {
    while (buffered.length < bytes) {
      if (ended) {
        throw new Error("closed");
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    const taken = buffered.subarray(0, bytes);
    buffered = buffered.subarray(bytes);
    return taken;
  };
}

function mac(ticket: StreamTicket, label: string, hello: Buffer, version: Buffer, nonce: Buffer): Buffer {
  return createHmac("sha256", ticket.secret).update(label).update(hello).update(version).update(nonce).digest();
}

type Behave = (socket: Socket, read: (bytes: number) => Promise<Buffer>) => Promise<void>;

/** A parent that opens the stream as it should and then behaves as it is told. */
async function hostileParent(
  ticket: StreamTicket,
  behave: Behave,
  opening: "right" | "wrong mac" | "version 9" = "right",
): Promise<string> {
  const server = createServer((socket) => {
    sockets.add(socket);
    const read = reader(socket);
    void (async () => {
      const hello = await read(56);
      const version = Buffer.from([opening === "version 9" ? 9 : 1, 0]);
      const nonce = randomBytes(32);
      const proof = opening === "wrong mac" ? randomBytes(32) : mac(ticket, "parent", hello, version, nonce);
      socket.write(Buffer.concat([Buffer.from("WLST"), version, Buffer.from([0, 0]), nonce, proof]));
      await read(32);
      await behave(socket, read);
    })().catch(() => undefined);
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  return `127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`;
}

const path = `${models}/m.safetensors`;
const bytes = writeModel(path, 3 * CHUNK + 100);
let loaded: LoadedHolding;
const layout = () =>
  native.digestFile("sha-256", `${honest.store}/holdings/${loaded.id}/layout`, 0n, loaded.scanned.layoutBytes);

async function layoutBytes(): Promise<Buffer> {
  const { readFileSync } = await import("node:fs");
  return readFileSync(`${honest.store}/holdings/${loaded.id}/layout`);
}

t.before(async () => {
  loaded = await loadHolding(honest, path);
});

function chunkFrame(index: number): Buffer {
  const data = bytes.subarray(index * CHUNK, (index + 1) * CHUNK);
  const digest = Buffer.alloc(32);
  digest.set(native.digest("xxh3-128", data));
  return frame(Type.chunk, BigInt(index), data, digest);
}

/** Answers the layout request well, then lets `then` answer the first GET. */
function afterLayout(then: Behave): Behave {
  return async (socket, read) => {
    await read(HEADER_BYTES);
    const whole = await layoutBytes();
    socket.write(frame(Type.layout, BigInt(whole.length), whole));
    await read(HEADER_BYTES + 4);
    await then(socket, read);
  };
}

async function pullFrom(ticket: StreamTicket, endpoint: string, stallMs = 1500): Promise<OrderError> {
  const order = pullBody(endpoint, loaded, [ticket], { stallMs });
  try {
    await victim.order(order);
  } catch (error) {
    if (error instanceof OrderError) {
      return error;
    }
    throw error;
  }
  throw new Error("the pull did not fail");
}

const lies: Array<[string, Behave, string, boolean]> = [
  [
    "a chunk with wrong bytes",
    afterLayout(async (socket) => void socket.write(frame(Type.chunk, 0n, randomBytes(CHUNK), randomBytes(32)))),
    "Corrupt",
    true,
  ],
  ["a chunk that was not asked for", afterLayout(async (socket) => void socket.write(chunkFrame(2))), "Corrupt", true],
  [
    "a chunk of a wrong length",
    afterLayout(async (socket) => void socket.write(frame(Type.chunk, 0n, bytes.subarray(0, 100)))),
    "Corrupt",
    true,
  ],
  [
    "a length of 4 GiB",
    afterLayout(
      async (socket) => void socket.write(frame(Type.chunk, 0n, Buffer.alloc(10), Buffer.alloc(32), 0xffffffff)),
    ),
    "Corrupt",
    true,
  ],
  [
    "an unknown frame",
    afterLayout(async (socket) => void socket.write(frame(77, 0n, Buffer.alloc(0)))),
    "Corrupt",
    true,
  ],
  ["garbage", afterLayout(async (socket) => void socket.write(randomBytes(4096))), "Corrupt", true],
  [
    "a layout that has another digest",
    async (socket, read) => {
      await read(HEADER_BYTES);
      const wrong = randomBytes(Number(loaded.scanned.layoutBytes));
      socket.write(frame(Type.layout, loaded.scanned.layoutBytes, wrong));
    },
    "Corrupt",
    true,
  ],
  [
    "a layout that is larger than announced",
    async (socket, read) => {
      await read(HEADER_BYTES);
      socket.write(
        frame(Type.layout, loaded.scanned.layoutBytes + 1n, randomBytes(Number(loaded.scanned.layoutBytes) + 1)),
      );
    },
    "Corrupt",
    true,
  ],
  [
    "a word that it failed",
    afterLayout(async (socket) => void socket.write(frame(Type.failed, 0n, Buffer.from("Refused\nthe disk is gone")))),
    "Unavailable",
    false,
  ],
  ["silence", afterLayout(async () => undefined), "Unavailable", false],
  [
    "half a chunk and silence",
    afterLayout(async (socket) => void socket.write(chunkFrame(0).subarray(0, 1000))),
    "Unavailable",
    false,
  ],
  [
    "half a chunk and a reset",
    afterLayout(async (socket) => void socket.write(chunkFrame(0).subarray(0, 1000), () => socket.resetAndDestroy())),
    "Unavailable",
    false,
  ],
  ["a closed stream", afterLayout(async (socket) => void socket.end()), "Unavailable", false],
];

for (const [name, behave, code, distrust] of lies) {
  t.test(`a parent that sends ${name}: ${code}, nothing wrong is kept`, async (t) => {
    const ticket = newTicket();
    const failed = await pullFrom(ticket, await hostileParent(ticket, behave));
    t.equal(failed.fault.code, code);
    t.equal(failed.report.distrustPeer, distrust);
    t.equal(failed.report.verifiedBytes, 0n, "no chunk was marked");
  });
}

t.test("a parent that lies with matching digests is found by the object digest", async (t) => {
  const ticket = newTicket();
  const behave = afterLayout(async (socket, read) => {
    for (let i = 0; i * CHUNK < bytes.length; i++) {
      const data = Buffer.from(bytes.subarray(i * CHUNK, (i + 1) * CHUNK));
      data.writeUInt8(data.readUInt8(data.length - 1) ^ 1, data.length - 1);
      const digest = Buffer.alloc(32);
      digest.set(native.digest("xxh3-128", data));
      socket.write(frame(Type.chunk, BigInt(i), data, digest));
    }
    await read(HEADER_BYTES);
    socket.write(frame(Type.object, 1n, Buffer.from(loaded.objectDigest)));
  });
  const failed = await pullFrom(ticket, await hostileParent(ticket, behave));
  t.equal(failed.fault.code, "Corrupt");
  t.equal(failed.report.distrustPeer, true);
  t.match(failed.fault.message, /not the one that was announced/);
});

t.test("a parent without the secret, and one of an unknown version", async (t) => {
  const ticket = newTicket();
  const stranger = await pullFrom(ticket, await hostileParent(ticket, async () => undefined, "wrong mac"));
  t.equal(stranger.fault.code, "PermissionDenied");
  const newer = await pullFrom(ticket, await hostileParent(ticket, async () => undefined, "version 9"));
  t.equal(newer.fault.code, "Refused");
  t.match(newer.fault.message, /version 9/);
});

t.test("a starved parent is not dead: it says that it waits", async (t) => {
  const ticket = newTicket();
  const behave = afterLayout(async (socket, read) => {
    for (let i = 0; i < 4; i++) {
      await sleep(400);
      socket.write(frame(Type.waiting, 0n, Buffer.alloc(0)));
    }
    for (let i = 0; i * CHUNK < bytes.length; i++) {
      socket.write(chunkFrame(i));
    }
    await read(HEADER_BYTES);
    socket.write(frame(Type.object, 1n, Buffer.from(loaded.objectDigest)));
  });
  const order = pullBody(await hostileParent(ticket, behave), loaded, [ticket], { stallMs: 1000 });
  const done = await victim.order(order);
  t.same(done.objectDigest, loaded.objectDigest);
  t.ok(done.waits.parentSeconds > 1, "the parent is blamed for the wait");
});

function waitingFrame(sinceOriginMs: bigint): Buffer {
  const age = Buffer.alloc(32);
  age.writeBigUInt64LE(sinceOriginMs);
  return frame(Type.waiting, 0n, Buffer.alloc(0), age);
}

t.test("a parent whose origin is silent waits in vain: the child leaves it, without distrust", async (t) => {
  for (const age of [30_001n, 2n ** 64n - 1n]) {
    const ticket = newTicket();
    const behave = afterLayout(async (socket) => void socket.write(waitingFrame(age)));
    const { fault, report } = await pullFrom(ticket, await hostileParent(ticket, behave), 60_000);
    t.equal(fault.code, "Unavailable");
    t.match(fault.message, /waits for an origin that was last heard of \d+ ms ago/);
    t.notOk(report.distrustPeer);
  }
});

t.test("a relay tells its children how long ago the origin was heard of, and passes news on", async (t) => {
  const ticket = newTicket();
  const fresh = Promise.withResolvers<void>();
  const behave = afterLayout(async (socket) => {
    const old = setInterval(() => socket.write(waitingFrame(20_000n)), 300);
    await fresh.promise;
    clearInterval(old);
    socket.write(waitingFrame(5n));
    await sleep(3000);
  });
  const order = pullBody(await hostileParent(ticket, behave), loaded, [ticket], { stallMs: 4000 });
  const relayed = victim.order(order).catch((error: unknown) => error);
  const below = newTicket();
  await eventually(() => existsSync(`${victim.store}/holdings/${order.holdingId}/layout`));
  await victim.order({ kind: "grant", holdingId: order.holdingId, ticket: below, ttlMs: 5000, child: "below" });
  const ages: number[] = [];
  const watch = (socket: Socket) => {
    socket.write(frame(Type.get, 0n, Buffer.from([1, 0, 0, 0])));
    socket.on("data", (data) => {
      for (let at = 0; at + HEADER_BYTES <= data.length; at += HEADER_BYTES) {
        ages.push(Number(data.readBigUInt64LE(at + 16)));
      }
      if (ages.length === 2) {
        fresh.resolve();
      }
    });
  };
  await hostileChild(below, watch, { address: victim.address, lastingMs: 4000 });
  const [first = 0, second = 0, third = 0] = ages;
  t.ok(first >= 900 && second > first + 900, `${ages}: the parent's old news is none`);
  t.ok(third < second, `${ages}: fresh news is passed on`);
  await relayed;
});

t.test("an endpoint where nobody listens, and nonsense as an endpoint", async (t) => {
  t.equal((await pullFrom(newTicket(), "127.0.0.1:1")).fault.code, "Unavailable");
  t.equal((await pullFrom(newTicket(), "nonsense")).fault.code, "InvalidArgument");
});

/** A child that opens a stream to the honest mover and sends what it likes. */
async function hostileChild(
  ticket: StreamTicket,
  send: (socket: Socket) => void,
  { address = honest.address, lastingMs = 1500 } = {},
): Promise<Buffer> {
  const [host = "", port = ""] = address.split(":");
  const socket = connect(Number(port), host);
  sockets.add(socket);
  const read = reader(socket);
  const hello = Buffer.concat([Buffer.from("WLST"), Buffer.from([1, 0, 1, 0]), ticket.id, randomBytes(32)]);
  socket.write(hello);
  const answer = await read(72);
  socket.write(mac(ticket, "child", hello, answer.subarray(4, 6), answer.subarray(8, 40)));
  send(socket);
  const received: Buffer[] = [];
  socket.on("data", (data) => received.push(data));
  await new Promise((resolve) => {
    socket.on("close", resolve);
    setTimeout(resolve, lastingMs);
  });
  socket.destroy();
  return Buffer.concat(received);
}

const strangers: Array<[string, (socket: Socket) => void]> = [
  ["garbage", (socket) => void socket.write(randomBytes(10_000))],
  ["a run beyond the end", (socket) => void socket.write(frame(Type.get, 2n, Buffer.from([0xff, 0xff, 0, 0])))],
  ["a run that overflows", (socket) => void socket.write(frame(Type.get, 2n ** 64n - 1n, Buffer.from([2, 0, 0, 0])))],
  ["an empty run", (socket) => void socket.write(frame(Type.get, 0n, Buffer.from([0, 0, 0, 0])))],
  ["a refusal of a chunk beyond the end", (socket) => void socket.write(frame(Type.refused, 10_000n, Buffer.alloc(0)))],
  ["frames of a parent", (socket) => void socket.write(chunkFrame(0))],
  [
    "a thousand requests at once",
    (socket) => {
      for (let i = 0; i < 1000; i++) socket.write(frame(Type.get, 0n, Buffer.from([4, 0, 0, 0])));
    },
  ],
  ["nothing", () => undefined],
];

for (const [name, send] of strangers) {
  t.test(`a child that sends ${name}: the mover goes on for others`, async (t) => {
    const ticket = newTicket();
    await honest.order({ kind: "grant", holdingId: loaded.id, ticket, ttlMs: 5000, child: "stranger" });
    await hostileChild(ticket, send);
    const order = await pullOrder(honest, loaded);
    t.same((await victim.order(order)).objectDigest, loaded.objectDigest);
    await victim.order({ kind: "evict", holdingId: order.holdingId, onlyIfFree: false });
    t.notOk(
      honest.events.some(({ kind }) => kind === "damage"),
      "a false refusal damages nothing",
    );
  });
}

t.test("200 silent connections do not keep others out", async (t) => {
  const [host = "", port = ""] = honest.address.split(":");
  const silent = Array.from({ length: 200 }, () => {
    const socket = connect(Number(port), host);
    socket.on("error", () => undefined);
    sockets.add(socket);
    return socket;
  });
  await sleep(200);
  const order = await pullOrder(honest, loaded);
  t.same((await victim.order(order)).objectDigest, loaded.objectDigest);
  for (const socket of silent) {
    socket.destroy();
  }
});

t.test("what failed left folders that an evict removes", async (t) => {
  for (const id of readdirSync(`${victim.store}/holdings`)) {
    await victim.order({ kind: "evict", holdingId: id, onlyIfFree: false });
  }
  t.same(readdirSync(`${victim.store}/holdings`), []);
  t.ok(await layout());
  t.equal((await victim.order({ kind: "evict", holdingId: newId(), onlyIfFree: true })).freedBytes, 0n);
});
