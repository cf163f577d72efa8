// What one peer may take of a gRPC server: each limit below, at and above it, and that others are served meanwhile.
import { once } from "node:events";
import { connect as connectHttp2, constants } from "node:http2";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { HealthService } from "@weightline/proto/health";
import {
  COMPRESSED_MESSAGE_MAX_BYTES,
  createGrpcChannel,
  HEADER_BLOCK_MAX_BYTES,
  HEADER_PAIRS_MAX_COUNT,
  MAX_MESSAGE_BYTES,
  MESSAGE_VALUES_MAX_COUNT,
  SERVER_LIMITS,
} from "@weightline/runtime";
import t, { type Test } from "tap";
import { H2, type HostilePeer } from "./support/hostile-peer.ts";
import {
  END_STREAM,
  FRAME,
  frame,
  grpcMessage,
  openRawConnection,
  prepareCall,
  type RawConnection,
  windowUpdate,
} from "./support/http2-frames.ts";
import { EMPTY, GET_HEALTH, isServed, limited, overTls, PLAIN, type Way } from "./support/limited-server.ts";
import { until } from "./support/processes.ts";

const OTHER = "127.0.0.2";
const OK = { status: 0 };
const RESOURCE_EXHAUSTED = { status: 8 };
const KIBIBYTE = 1024;

const WAYS = [PLAIN, overTls(t)];

/** One test for each way. */
function eachWay(name: string, body: (t: Test, way: Way) => Promise<void>): void {
  for (const way of WAYS) {
    t.test(`${name} (${way.name})`, (t) => body(t, way));
  }
}

eachWay("connections of one address: at the limit all are served, above it the longest idle goes", async (t, way) => {
  const { server, reasons, peer } = await limited(t, way, { connectionsPerAddressCount: 3 });
  const peers = [await peer(), await peer(), await peer()];
  for (const one of peers) {
    t.ok(await isServed(one));
  }
  t.equal(server.connections(), 3);
  t.same(reasons, []);
  // The first is used again: the second is the longest idle.
  t.ok(await isServed(peers[0] as HostilePeer));
  t.ok(await isServed(await peer()), "the new one is served");
  await peers[1]?.ended();
  t.same(
    peers.map((one) => one.closed()),
    [false, true, false],
  );
  const goaway = peers[1]?.frames.find(({ type }) => type === FRAME.goaway);
  t.equal(goaway?.payload.readUInt32BE(4), H2.noError, "it was told to come again");
  t.same(reasons, [["connections-per-address", "127.0.0.1"]]);
  t.ok(await isServed(await peer({ localAddress: OTHER })), "another address is not concerned");
  t.equal(server.connections(), 4);
});

eachWay("connections with running calls are not closed: the new one is", async (t, way) => {
  const { reasons, peer, letGo } = await limited(t, way, { connectionsPerAddressCount: 2 }, { held: true });
  const busy = [await peer(), await peer()];
  const calls = busy.map((one) => one.call(GET_HEALTH, EMPTY));
  // The pings come back after the calls have begun.
  for (const one of busy) {
    one.send(frame(FRAME.ping, 0, 0, Buffer.alloc(8)));
    await one.got(FRAME.ping, 0);
  }
  // It may be reset before its client knows that it was connected.
  await peer().then(
    (one) => one.ended(),
    (error) => t.match(error, { code: "ECONNRESET" }),
  );
  t.same(reasons, [["connections-per-address", "127.0.0.1"]]);
  const other = await peer({ localAddress: OTHER });
  const call = other.call(GET_HEALTH, EMPTY);
  letGo();
  t.match(await other.end(call), OK);
  for (const [i, one] of busy.entries()) {
    t.match(await one.end(calls[i] ?? 0), OK);
  }
});

eachWay("connections of all addresses", async (t, way) => {
  const { server, reasons, peer } = await limited(t, way, { connectionsCount: 3 });
  const first = await peer();
  const others = [await peer({ localAddress: OTHER }), await peer({ localAddress: OTHER })];
  for (const one of [first, ...others]) {
    t.ok(await isServed(one));
  }
  t.same(reasons, []);
  t.ok(await isServed(await peer({ localAddress: "127.0.0.3" })));
  await first.ended();
  t.same(reasons, [["connections", "127.0.0.1"]]);
  t.equal(server.connections(), 3);
});

eachWay("calls at once on one connection: who makes more than it was told to loses the connection", async (t, way) => {
  const { peer, letGo } = await limited(t, way, { streamsPerConnectionCount: 4 }, { held: true });
  const [greedy, right] = [await peer(), await peer()];
  const announced = await greedy.got(FRAME.settings, 0);
  t.ok(announced.payload.toString("hex").startsWith("000300000004"), "clients are told");
  const running = Array.from({ length: 4 }, () => right.call(GET_HEALTH, EMPTY));
  for (let i = 0; i < 5; i++) {
    greedy.call(GET_HEALTH, EMPTY);
  }
  await greedy.ended();
  letGo();
  for (const stream of running) {
    t.match(await right.end(stream), OK);
  }
  t.ok(await isServed(right), "there is room again");
  t.equal(SERVER_LIMITS.streamsPerConnectionCount, 32);
});

t.test("headers of a request: their bytes and their number", async (t) => {
  const { server } = await limited(t, PLAIN, {});
  const session = connectHttp2(`http://127.0.0.1:${server.port}`, { maxSendHeaderBlockLength: 1 << 20 });
  session.on("error", () => undefined);
  t.teardown(() => session.destroy());
  const base: Record<string, string> = {
    ":method": "POST",
    ":scheme": "http",
    ":authority": "localhost",
    ":path": GET_HEALTH,
    "content-type": "application/grpc",
  };
  const sizeOf = (headers: Record<string, string>) =>
    Object.entries(headers).reduce((sum, [name, value]) => sum + name.length + value.length + 32, 0);
  const ask = (headers: Record<string, string>) =>
    new Promise<string>((resolve) => {
      const stream = session.request(headers);
      let outcome = "";
      stream.on("trailers", (trailers) => {
        outcome = `grpc ${trailers["grpc-status"]}`;
      });
      stream.on("error", () => undefined);
      stream.on("close", () => resolve(outcome === "" ? `reset ${stream.rstCode}` : outcome));
      stream.resume();
      stream.end(EMPTY);
    });
  const filled = (bytes: number) => ({ ...base, x: "a".repeat(bytes - sizeOf(base) - 33) });
  const refused = `reset ${constants.NGHTTP2_ENHANCE_YOUR_CALM}`;
  t.equal(sizeOf(filled(HEADER_BLOCK_MAX_BYTES)), HEADER_BLOCK_MAX_BYTES);
  t.equal(await ask(filled(HEADER_BLOCK_MAX_BYTES - 1)), "grpc 0");
  t.equal(await ask(filled(HEADER_BLOCK_MAX_BYTES)), "grpc 0");
  t.equal(await ask(filled(HEADER_BLOCK_MAX_BYTES + 1)), refused);
  const many = (count: number) => ({
    ...base,
    ...Object.fromEntries(Array.from({ length: count - 5 }, (_, i) => [`x${i}`, ""])),
  });
  t.equal(await ask(many(HEADER_PAIRS_MAX_COUNT - 1)), "grpc 0");
  t.equal(await ask(many(HEADER_PAIRS_MAX_COUNT)), "grpc 0");
  t.equal(await ask(many(HEADER_PAIRS_MAX_COUNT + 1)), refused);
  t.equal(await ask(base), "grpc 0", "the connection lives on");
});

/** One call by node's own HTTP/2; gives its gRPC status. */
async function statusOf(port: number, body: Buffer, headers: Record<string, string> = {}): Promise<number> {
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  session.on("error", () => undefined);
  try {
    return await new Promise<number>((resolve, reject) => {
      const stream = session.request({
        ":method": "POST",
        ":path": GET_HEALTH,
        "content-type": "application/grpc",
        ...headers,
      });
      const take = (from: Record<string, unknown>) => {
        if (from["grpc-status"] !== undefined) {
          resolve(Number(from["grpc-status"]));
        }
      };
      stream.on("response", take);
      stream.on("trailers", take);
      stream.on("error", () => undefined);
      stream.on("close", () => reject(new Error(`reset ${stream.rstCode}`)));
      stream.resume();
      stream.end(body);
    });
  } finally {
    session.destroy();
  }
}

/** A message of unknown fields, of so many bytes. */
function unknownBytes(length: number): Buffer {
  const message = Buffer.alloc(length);
  message[0] = ((1000 << 3) % 128) | 0x82;
  message[1] = (1000 << 3) >> 7;
  let rest = length - 2 - 4;
  for (let at = 2; at < 6; at++) {
    message[at] = (rest & 127) | (at < 5 ? 128 : 0);
    rest >>= 7;
  }
  return message;
}

t.test("a message: its bytes", async (t) => {
  const { server } = await limited(t, PLAIN, {});
  t.equal(await statusOf(server.port, grpcMessage(unknownBytes(MAX_MESSAGE_BYTES))), 0);
  const head = grpcMessage(Buffer.alloc(0));
  head.writeUInt32BE(MAX_MESSAGE_BYTES + 1, 1);
  t.equal(await statusOf(server.port, head), RESOURCE_EXHAUSTED.status, "refused by its length alone");
});

t.test("a compressed message: its bytes when unpacked", async (t) => {
  const { server } = await limited(t, PLAIN, {});
  const packed = (bytes: number) => {
    const framed = grpcMessage(gzipSync(unknownBytes(bytes)));
    framed[0] = 1;
    return framed;
  };
  const gzip = { "grpc-encoding": "gzip" };
  t.equal(await statusOf(server.port, packed(COMPRESSED_MESSAGE_MAX_BYTES - 1), gzip), 0);
  t.equal(await statusOf(server.port, packed(COMPRESSED_MESSAGE_MAX_BYTES), gzip), 0);
  t.equal(await statusOf(server.port, packed(COMPRESSED_MESSAGE_MAX_BYTES + 1), gzip), RESOURCE_EXHAUSTED.status);
});

t.test("a message: its values", async (t) => {
  const { server } = await limited(t, PLAIN, {});
  const values = (count: number) => grpcMessage(Buffer.alloc(count * 2, Buffer.from([0x78, 0])));
  t.equal(await statusOf(server.port, values(MESSAGE_VALUES_MAX_COUNT - 1)), 0);
  t.equal(await statusOf(server.port, values(MESSAGE_VALUES_MAX_COUNT)), 0);
  t.equal(await statusOf(server.port, values(MESSAGE_VALUES_MAX_COUNT + 1)), RESOURCE_EXHAUSTED.status);
});

eachWay("bytes of unfinished requests of one address, and of all", async (t, way) => {
  const limit = 512 * KIBIBYTE;
  const { reasons, peer } = await limited(t, way, { bytesPerAddress: limit, bytesInAll: limit + limit / 2 });
  /** A call that has sent so much of a message that is never whole. */
  const fill = async (one: HostilePeer, bytes: number) => {
    const stream = one.begin(GET_HEALTH);
    const head = Buffer.alloc(5);
    head.writeUInt32BE(MAX_MESSAGE_BYTES, 1);
    for (let left = bytes; left > 0; left -= 16 * KIBIBYTE) {
      const piece = Buffer.alloc(Math.min(left, 16 * KIBIBYTE));
      head.copy(piece);
      head.fill(0);
      // Windows are 65,535 bytes: each is waited for.
      await until("a window", () => sent(one) - taken(one) < 40 * KIBIBYTE || one.closed());
      one.send(frame(FRAME.data, 0, stream, piece));
      sentBytes.set(one, sent(one) + piece.length);
    }
    return stream;
  };
  const sentBytes = new Map<HostilePeer, number>();
  const sent = (one: HostilePeer) => sentBytes.get(one) ?? 0;
  const taken = (one: HostilePeer) =>
    one.frames
      .filter(({ type, stream }) => type === FRAME.windowUpdate && stream === 0)
      .reduce((sum, { payload }) => sum + payload.readUInt32BE(), 0);

  const one = await peer();
  const first = await fill(one, limit / 2 - 16 * KIBIBYTE);
  t.ok(await isServed(one), "below the limit");
  const two = await peer();
  const second = await fill(two, limit / 2 - 16 * KIBIBYTE);
  t.ok(await isServed(two), "as good as at it");
  t.same(reasons, []);
  const above = await fill(await peer(), 64 * KIBIBYTE);
  t.type(above, "number");
  await until("the refusal", () => reasons.length > 0);
  t.same(reasons[0], ["bytes-per-address", "127.0.0.1"]);
  const other = await peer({ localAddress: OTHER });
  t.ok(await isServed(other), "another address is served");
  const inAll = await fill(other, limit / 2 + 64 * KIBIBYTE);
  t.match(await other.end(inAll), RESOURCE_EXHAUSTED);
  t.ok(reasons.some(([reason, address]) => reason === "bytes" && address === OTHER));
  one.send(frame(FRAME.reset, 0, first, Buffer.from([0, 0, 0, H2.cancel])));
  two.send(frame(FRAME.reset, 0, second, Buffer.from([0, 0, 0, H2.cancel])));
  const third = await peer();
  await until("room", async () => isServed(third));
  const refusals = reasons.length;
  await fill(third, limit / 2);
  t.ok(await isServed(third));
  t.equal(reasons.length, refusals, "the room of what was cancelled is there again");
});

eachWay("replies that nobody takes count as well", async (t, way) => {
  const replyBytes = 128 * KIBIBYTE;
  const { reasons, peer } = await limited(t, way, { bytesPerAddress: 4 * replyBytes }, { replyBytes });
  const slow = await peer({ windowBytes: 0 });
  const streams = Array.from({ length: 5 }, () => slow.call(GET_HEALTH, EMPTY));
  for (const stream of streams) {
    await slow.got(FRAME.headers, stream);
  }
  const greatWindow = async (localAddress?: string) => {
    const one = await peer({ windowBytes: 2 ** 31 - 1, ...(localAddress === undefined ? {} : { localAddress }) });
    one.send(windowUpdate(0, 2 ** 30));
    return one;
  };
  const another = await greatWindow();
  await until("a refusal", async () => (await another.end(another.call(GET_HEALTH, EMPTY))).status === 8);
  t.ok(reasons.every(([reason, address]) => reason === "bytes-per-address" && address === "127.0.0.1"));
  t.ok(await isServed(await greatWindow(OTHER)));
  slow.send(windowUpdate(0, 2 ** 30), ...streams.map((stream) => windowUpdate(stream, 2 ** 30)));
  for (const stream of streams) {
    t.match(await slow.end(stream), OK, "what was answered arrives when it is taken");
  }
  await until("room", async () => (await another.end(another.call(GET_HEALTH, EMPTY))).status === 0);
});

eachWay("a connection that never speaks ends; one that greets stays", async (t, way) => {
  const { server, reasons, peer } = await limited(t, way, { silentConnectionMs: 300 });
  const silent = await peer({ silent: true });
  const half = await peer({ silent: true });
  half.send(Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
  const greeting = await peer();
  await silent.ended();
  await half.ended();
  t.same(reasons, [
    ["silent-connection", "127.0.0.1"],
    ["silent-connection", "127.0.0.1"],
  ]);
  await sleep(1500);
  t.ok(await isServed(greeting));
  t.equal(server.connections(), 1);
});

eachWay("one port of a client towards two addresses of the server: two connections", async (t, way) => {
  const { server, peer, letGo } = await limited(t, way, {}, { held: true, bind: "0.0.0.0" });
  const one = await peer();
  const localPort = one.socket.localPort as number;
  const other = connect({ port: server.port, host: OTHER, localAddress: "127.0.0.1", localPort });
  t.teardown(() => other.destroy());
  await once(other, "connect");
  await until("both", () => server.connections() === 2);
  const call = one.call(GET_HEALTH, EMPTY);
  other.destroy();
  await until("one again", () => server.connections() === 1);
  letGo();
  t.match(await one.end(call), OK);
});

t.test("a request that stops coming ends its call; a slow one, and a slow handler, do not", async (t) => {
  const { reasons, peer, letGo } = await limited(t, PLAIN, { stalledCallMs: 600 }, { held: true });
  const one = await peer();
  const stalled = one.begin(GET_HEALTH);
  const slow = one.begin(GET_HEALTH);
  const whole = one.call(GET_HEALTH, EMPTY);
  for (let i = 0; i < 4; i++) {
    one.send(frame(FRAME.data, 0, slow, EMPTY.subarray(i, i + 1)));
    await sleep(300);
  }
  t.match(await one.end(stalled), { status: 4 });
  one.send(frame(FRAME.data, END_STREAM, slow, EMPTY.subarray(4)));
  await sleep(1000);
  t.same(reasons, [["stalled-request", "127.0.0.1"]]);
  letGo();
  t.match(await one.end(slow), OK);
  t.match(await one.end(whole), OK);
});

eachWay("a reply that nobody takes ends its call; one that is taken slowly does not", async (t, way) => {
  const { reasons, peer } = await limited(t, way, { stalledCallMs: 600 }, { replyBytes: 100 * KIBIBYTE });
  const never = await peer({ windowBytes: 0 });
  const slowly = await peer({ windowBytes: 0, localAddress: OTHER });
  const [dead, slow] = [never.call(GET_HEALTH, EMPTY), slowly.call(GET_HEALTH, EMPTY)];
  slowly.send(windowUpdate(0, 2 ** 30));
  for (let i = 0; i < 8; i++) {
    slowly.send(windowUpdate(slow, 12 * KIBIBYTE));
    await sleep(250);
  }
  t.match(await never.end(dead), { reset: H2.cancel });
  slowly.send(windowUpdate(slow, 50 * KIBIBYTE));
  t.match(await slowly.end(slow), OK);
  t.same(reasons, [["stalled-reply", "127.0.0.1"]]);
});

eachWay("pings: who does not answer is gone, who pings all the time is answered", async (t, way) => {
  const { peer } = await limited(t, way, { keepaliveIntervalMs: 200, keepaliveTimeoutMs: 300 });
  const dead = await peer({ ignorePings: true });
  const alive = await peer({ localAddress: OTHER });
  await dead.ended();
  const answers = () => alive.frames.filter(({ type, flags }) => type === FRAME.ping && flags === 1).length;
  for (let sent = 0; sent < 5000; sent += 100) {
    alive.send(...Array.from({ length: 100 }, () => frame(FRAME.ping, 0, 0, Buffer.alloc(8, 1))));
    await until("all answers", () => answers() === sent + 100 || alive.closed());
  }
  t.notOk(alive.frames.some(({ type }) => type === FRAME.goaway));
  t.ok(await isServed(alive));
});

t.test("a generated client waits where a stream is one too many", async (t) => {
  const { server, letGo } = await limited(t, PLAIN, { streamsPerConnectionCount: 2 }, { held: true });
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
  t.teardown(() => channel.close());
  const calls = Array.from({ length: 6 }, () => channel.client(HealthService).getHealth({}));
  await sleep(100);
  letGo();
  t.equal((await Promise.all(calls)).length, 6);
});

eachWay("calls of one address do not keep those of another waiting, and all are served", async (t, way) => {
  const call = prepareCall(GET_HEALTH, Buffer.alloc(0));
  /** How many of 240 calls of one address were answered before one of another that came after them. */
  const answeredBefore = async (callsPerTurnCount: number): Promise<number> => {
    const { server } = await limited(t, way, { callsPerTurnCount });
    const many = await Promise.all(Array.from({ length: 8 }, () => openRawConnection(server.port, undefined, way.tls)));
    const other = await openRawConnection(server.port, OTHER, way.tls);
    t.teardown(() => {
      for (const one of [...many, other]) {
        one.close();
      }
    });
    const ask = (one: RawConnection) =>
      new Promise<boolean>((resolve) => one.send(call, false, ({ answered }) => resolve(answered)));
    t.ok(await ask(other), "it counts as one who makes calls");
    let answered = 0;
    const calls = many.flatMap((one) =>
      Array.from({ length: 30 }, () => ask(one).then((served) => served && ++answered)),
    );
    // They are on their way; this one comes after them.
    await new Promise((resolve) => setImmediate(resolve));
    t.ok(await ask(other));
    const before = answered;
    await Promise.all(calls);
    t.equal(answered, 240, "all of the many were served");
    return before;
  };
  const without = await answeredBefore(Number.POSITIVE_INFINITY);
  const withTurns = await answeredBefore(2);
  t.ok(without > 120, `without turns ${without} of 240 came before it`);
  t.ok(withTurns < 60, `${withTurns} of 240 came before it`);
});
