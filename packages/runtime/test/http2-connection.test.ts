// What the server's side of HTTP/2 does with whatever may come over a socket, and what gRPC on it says to it.
import { once } from "node:events";
import { connect as connectHttp2, constants } from "node:http2";
import { createServer, type Socket } from "node:net";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { Health, HealthCheckRequestSchema } from "@weightline/proto/grpc-health";
import { GetHealthResponseSchema } from "@weightline/proto/health";
import { createGrpcServer, type GrpcServer, type GrpcServerOptions, type ServiceRoute } from "@weightline/runtime";
import t, { type Test } from "tap";
import { collectEscapedFaults } from "../../../test/support/escaped-faults.ts";
import { type HostileOptions, type HostilePeer, openHostilePeer } from "../../../test/support/hostile-peer.ts";
import {
  ACK,
  callHeaders,
  dial,
  END_HEADERS,
  END_STREAM,
  FRAME,
  type Frame,
  frame,
  frameReader,
  grpcMessage,
  INITIAL_WINDOW_SIZE,
  PREFACE,
  settings,
  windowUpdate,
} from "../../../test/support/http2-frames.ts";
import { createRandom, mutateBytes } from "../../../test/support/mutation.ts";
import { until } from "../../../test/support/processes.ts";
import { Http2Connection } from "../src/http2/http2-connection.ts";
import type { Http2Stream } from "../src/http2/http2-stream.ts";
import { RESET_BURST_COUNT } from "../src/rpc/server-limits.ts";

const faults = collectEscapedFaults(t);

// Codes of GOAWAY and RST_STREAM.
const PROTOCOL = 1;
const FLOW_CONTROL = 3;
const STREAM_CLOSED = 5;
const FRAME_SIZE = 6;
const REFUSED = 7;
const COMPRESSION = 9;
const CALM = 11;

const PRIORITY_TYPE = 2;
const PUSH_PROMISE_TYPE = 5;
const PADDED = 8;
const PRIORITY = 0x20;
const WINDOW_MAX = 2 ** 31 - 1;
const FIRST_WINDOW = 65_535;
const FRAME_MAX = 16_384;

// A service with all four kinds of methods, whose requests say what to do.
type Request = { service: string };
type Context = { signal: AbortSignal; requestHeader: Headers };
const service = { ...Health, typeName: "test.Kinds", methods: [] as DescMethod[] };
for (const [name, methodKind] of [
  ["Count", "client_streaming"],
  ["Echo", "bidi_streaming"],
  ["Repeat", "server_streaming"],
  ["Once", "unary"],
] as const) {
  service.methods.push({
    ...Health.method.check,
    output: GetHealthResponseSchema,
    name,
    localName: name.toLowerCase(),
    methodKind,
    parent: service,
  } as unknown as DescMethod);
}
const ONCE = "/test.Kinds/Once";
const COUNT = "/test.Kinds/Count";
const ECHO = "/test.Kinds/Echo";
const REPEAT = "/test.Kinds/Repeat";

/** Handlers that run. */
let running = 0;
let gate = Promise.withResolvers<void>();
const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) {
      resolve();
    }
    signal.addEventListener("abort", () => resolve());
  });
const letters = (count: number) => "abcdefghijklmnopqrstuvwxyz0123456789".repeat(Math.ceil(count / 36)).slice(0, count);

async function answer(text: string, { signal, requestHeader }: Context): Promise<{ status: string }> {
  const [word = "", argument = ""] = text.split(":");
  switch (word) {
    case "size":
      return { status: letters(Number(argument)) };
    case "wait":
      await Promise.race([gate.promise, aborted(signal)]);
      return { status: "waited" };
    case "hang":
      await gate.promise;
      return { status: "late" };
    case "header":
      return { status: requestHeader.get(argument) ?? "" };
    case "signal":
      await new Promise((resolve) => setTimeout(resolve, Number(argument)));
      return { status: String(signal.aborted) };
    case "fail":
      throw new ConnectError(argument, Code.OutOfRange);
    default:
      return { status: text };
  }
}
const implementation = {
  async once({ service }: Request, context: Context) {
    running += 1;
    try {
      return await answer(service, context);
    } finally {
      running -= 1;
    }
  },
  async count(requests: AsyncIterable<Request>) {
    running += 1;
    try {
      let count = 0;
      let length = 0;
      for await (const { service } of requests) {
        count += 1;
        length += service.length;
      }
      return { status: `${count} ${length}` };
    } finally {
      running -= 1;
    }
  },
  async *echo(requests: AsyncIterable<Request>, context: Context) {
    running += 1;
    try {
      for await (const { service } of requests) {
        yield await answer(service, context);
      }
    } finally {
      running -= 1;
    }
  },
  async *repeat({ service }: Request, { signal }: Context) {
    running += 1;
    try {
      const [count = 0, size = 0] = service.split("x").map(Number);
      for (let i = 0; i < count && !signal.aborted; i++) {
        yield { status: `${i}`.padEnd(size, "-") };
      }
    } finally {
      running -= 1;
    }
  },
};

async function start(t: Pick<Test, "teardown">, options: Partial<GrpcServerOptions> = {}): Promise<GrpcServer> {
  const server = await createGrpcServer({
    routes: [{ service: service as unknown as DescService, implementation } as unknown as ServiceRoute],
    bind: ["127.0.0.1"],
    port: 0,
    portFlag: "--port",
    ...options,
  });
  t.teardown(() => server.stop(0));
  return server;
}

async function open(t: Test, { port }: { port: number }, options?: HostileOptions): Promise<HostilePeer> {
  const peer = await openHostilePeer(port, options);
  t.teardown(() => peer.socket.destroy());
  return peer;
}

const encode = (text: string) =>
  Buffer.from(toBinary(HealthCheckRequestSchema, create(HealthCheckRequestSchema, { service: text })));
const decode = (bytes: Uint8Array) => fromBinary(GetHealthResponseSchema, bytes).status;
const message = (text: string) => grpcMessage(encode(text));
const block = (path = ONCE, more?: Readonly<Record<string, string>>) => callHeaders(path, more);
const headers = (stream: number, flags = END_HEADERS, payload = block()) =>
  frame(FRAME.headers, flags, stream, payload);
const data = (stream: number, payload: Buffer, flags = END_STREAM) => frame(FRAME.data, flags, stream, payload);
const reset = (stream: number) => frame(FRAME.reset, 0, stream, Buffer.from([0, 0, 0, 8]));
const ping = (number = 0) => {
  const payload = Buffer.alloc(8);
  payload.writeUInt32BE(number);
  return frame(FRAME.ping, 0, 0, payload);
};
const padded = (payload: Buffer, bytes: number) => Buffer.concat([Buffer.from([bytes]), payload, Buffer.alloc(bytes)]);
const call = (stream: number, text = "x", path = ONCE) =>
  Buffer.concat([headers(stream, END_HEADERS, block(path)), data(stream, message(text))]);
const field = (name: string, value: string) =>
  Buffer.concat([
    Buffer.from([0, name.length]),
    Buffer.from(name, "latin1"),
    Buffer.from([value.length]),
    Buffer.from(value, "latin1"),
  ]);

const bytesOf = (peer: HostilePeer, stream: number) =>
  Buffer.concat(
    peer.frames.filter((came) => came.type === FRAME.data && came.stream === stream).map(({ payload }) => payload),
  );
/** What the one message of a reply says. */
const replyOf = (peer: HostilePeer, stream: number) => decode(bytesOf(peer, stream).subarray(5));

let pings = 1000;
/** Everything before was read, and what it led to at once has come. */
async function sync(peer: HostilePeer): Promise<void> {
  // The first one's answer may be before what the same piece lets go.
  for (let round = 0; round < 2; round++) {
    pings += 1;
    const number = pings;
    peer.send(ping(number));
    await until("a ping's answer", () =>
      peer.frames.some(
        (came) => came.type === FRAME.ping && (came.flags & ACK) !== 0 && came.payload.readUInt32BE() === number,
      ),
    );
  }
}

/** The code with which the connection ended. */
async function goneFor(peer: HostilePeer): Promise<number | undefined> {
  await peer.ended();
  return peer.frames.find((came) => came.type === FRAME.goaway)?.payload.readUInt32BE(4);
}

async function served(peer: HostilePeer, text = "alive"): Promise<boolean> {
  const stream = peer.call(ONCE, message(text));
  const end = await peer.end(stream);
  return end.status === 0 && end.reset === undefined && replyOf(peer, stream) === text;
}

const server = await start(t);
const greeting = Buffer.concat([PREFACE, settings([])]);

// Connections.

t.test("each fault of a connection ends it with the code that RFC 9113 has for it", async (t) => {
  const number = (bytes: number) => {
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(bytes);
    return payload;
  };
  const faultsOf: ReadonlyArray<readonly [what: string, code: number, ...frames: Buffer[]]> = [
    ["a frame is too long", FRAME_SIZE, frame(0x42, 0, 0, Buffer.alloc(FRAME_MAX + 1))],
    ["a long DATA frame", FRAME_SIZE, headers(1), data(1, Buffer.alloc(FRAME_MAX + 1))],
    ["SETTINGS of a stream", PROTOCOL, frame(FRAME.settings, 0, 1)],
    ["SETTINGS of 5 bytes", FRAME_SIZE, frame(FRAME.settings, 0, 0, Buffer.alloc(5))],
    ["an acknowledgement with a payload", FRAME_SIZE, frame(FRAME.settings, ACK, 0, Buffer.alloc(6))],
    ["ENABLE_PUSH 2", PROTOCOL, settings([[2, 2]])],
    ["INITIAL_WINDOW_SIZE 2^31", FLOW_CONTROL, settings([[INITIAL_WINDOW_SIZE, 2 ** 31]])],
    ["MAX_FRAME_SIZE 16383", PROTOCOL, settings([[5, FRAME_MAX - 1]])],
    ["MAX_FRAME_SIZE 2^24", PROTOCOL, settings([[5, 2 ** 24]])],
    [
      "INITIAL_WINDOW_SIZE makes a stream's window too large",
      FLOW_CONTROL,
      headers(1, END_HEADERS, block(ECHO)),
      windowUpdate(1, WINDOW_MAX - FIRST_WINDOW),
      settings([[INITIAL_WINDOW_SIZE, FIRST_WINDOW + 1]]),
    ],
    ["PING of 7 bytes", FRAME_SIZE, frame(FRAME.ping, 0, 0, Buffer.alloc(7))],
    ["PING of a stream", PROTOCOL, frame(FRAME.ping, 0, 1, Buffer.alloc(8))],
    ["RST_STREAM of 3 bytes", FRAME_SIZE, headers(1), frame(FRAME.reset, 0, 1, Buffer.alloc(3))],
    ["RST_STREAM of an idle stream", PROTOCOL, reset(1)],
    ["RST_STREAM of no stream", PROTOCOL, reset(0)],
    ["WINDOW_UPDATE of 0", PROTOCOL, windowUpdate(0, 0)],
    ["the connection's window is too large", FLOW_CONTROL, windowUpdate(0, WINDOW_MAX)],
    ["the same in steps", FLOW_CONTROL, windowUpdate(0, WINDOW_MAX - FIRST_WINDOW), windowUpdate(0, 1)],
    ["WINDOW_UPDATE of 3 bytes", FRAME_SIZE, frame(FRAME.windowUpdate, 0, 0, Buffer.alloc(3))],
    ["WINDOW_UPDATE of an idle stream", PROTOCOL, windowUpdate(1, 1)],
    ["WINDOW_UPDATE of a server's stream", PROTOCOL, headers(3), windowUpdate(2, 1)],
    ["DATA of an idle stream", PROTOCOL, headers(1), data(3, message("x"))],
    ["DATA of no stream", PROTOCOL, data(0, message("x"))],
    ["HEADERS of an even stream", PROTOCOL, headers(2)],
    ["HEADERS of no stream", PROTOCOL, headers(0)],
    ["a ping interrupts a header block", PROTOCOL, headers(1, 0), ping()],
    ["DATA interrupt a header block", PROTOCOL, headers(1, 0), data(1, message("x"))],
    ["HEADERS interrupt a header block", PROTOCOL, headers(1, 0), headers(1)],
    [
      "another stream's CONTINUATION interrupts a header block",
      PROTOCOL,
      headers(1),
      headers(3, 0),
      frame(FRAME.continuation, END_HEADERS, 1),
    ],
    ["what is not known interrupts a header block", PROTOCOL, headers(1, 0), frame(0x42, 0, 0)],
    ["CONTINUATION without HEADERS", PROTOCOL, frame(FRAME.continuation, END_HEADERS, 1, block())],
    ["CONTINUATION after a whole block", PROTOCOL, headers(1), frame(FRAME.continuation, END_HEADERS, 1)],
    ["too many CONTINUATIONs", CALM, headers(1, 0), ...Array(200).fill(frame(FRAME.continuation, 0, 1))],
    [
      "CONTINUATIONs of too many bytes",
      CALM,
      headers(1, 0),
      ...Array(12).fill(frame(FRAME.continuation, 0, 1, Buffer.alloc(FRAME_MAX))),
    ],
    ["HPACK's index 0", COMPRESSION, headers(1, END_HEADERS, Buffer.concat([block(), Buffer.from([0x80])]))],
    ["an index beyond the tables", COMPRESSION, headers(1, END_HEADERS, Buffer.concat([block(), Buffer.from([0xfe])]))],
    ["a header block is cut off", COMPRESSION, headers(1, END_HEADERS, block().subarray(0, -3))],
    ["a table above the limit", COMPRESSION, headers(1, END_HEADERS, Buffer.from([0x3f, 0xff, 0x7f]))],
    ["bad Huffman code", COMPRESSION, headers(1, END_HEADERS, Buffer.concat([block(), Buffer.from([0, 0x81, 0])]))],
    ["broken trailers", COMPRESSION, headers(1), headers(1, END_HEADERS | END_STREAM, Buffer.from([0x80]))],
    [
      "a broken block of a stream that is over",
      COMPRESSION,
      headers(1),
      reset(1),
      headers(1, END_HEADERS | END_STREAM, Buffer.from([0x80])),
    ],
    ["padding as long as DATA", PROTOCOL, headers(1), frame(FRAME.data, PADDED, 1, Buffer.from([4, 0, 0, 0]))],
    ["padding without a length", PROTOCOL, headers(1), frame(FRAME.data, PADDED, 1)],
    ["padding longer than HEADERS", PROTOCOL, headers(1, END_HEADERS | PADDED, Buffer.from([200, 1, 2]))],
    ["HEADERS shorter than their priority", FRAME_SIZE, headers(1, END_HEADERS | PRIORITY, Buffer.alloc(4))],
    ["PRIORITY of 4 bytes", FRAME_SIZE, frame(PRIORITY_TYPE, 0, 1, Buffer.alloc(4))],
    ["PRIORITY of no stream", PROTOCOL, frame(PRIORITY_TYPE, 0, 0, Buffer.alloc(5))],
    ["PUSH_PROMISE", PROTOCOL, headers(1), frame(PUSH_PROMISE_TYPE, END_HEADERS, 1, number(2))],
    ["GOAWAY of a stream", PROTOCOL, frame(FRAME.goaway, 0, 1, Buffer.alloc(8))],
    ["GOAWAY of 7 bytes", FRAME_SIZE, frame(FRAME.goaway, 0, 0, Buffer.alloc(7))],
  ];
  const good = await open(t, server);
  for (const [what, code, ...frames] of faultsOf) {
    const peer = await open(t, server, { silent: true });
    peer.send(greeting, ...frames);
    t.equal(await goneFor(peer), code, what);
    const goaways = peer.frames.filter((came) => came.type === FRAME.goaway);
    t.equal(goaways.length, 1, `${what}: one GOAWAY`);
    t.equal(peer.frames.at(-1), goaways[0], `${what}: nothing after it`);
  }
  t.ok(await served(good), "others are served");
  await until("the end of all others", () => server.connections() === 1);
  await until("the end of all calls", () => running === 0);
});

t.test("a GOAWAY says which request was the last that was looked at", async (t) => {
  const peer = await open(t, server);
  peer.send(call(1), call(7));
  await peer.end(7);
  peer.send(frame(FRAME.ping, 0, 1, Buffer.alloc(8)));
  await peer.ended();
  t.equal(peer.frames.find((came) => came.type === FRAME.goaway)?.payload.readUInt32BE(), 7);
});

t.test("who does not speak HTTP/2 is told so at the first wrong byte", async (t) => {
  for (const [what, bytes] of [
    ["HTTP/1.1", Buffer.from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")],
    ["a preface whose end is wrong", Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r")],
    ["one wrong byte", Buffer.from("p")],
    ["TLS", Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])],
    ["noughts", Buffer.alloc(1000)],
  ] as const) {
    const peer = await open(t, server, { silent: true });
    peer.send(bytes);
    t.equal(await goneFor(peer), PROTOCOL, what);
  }
});

t.test("HEADERS of a lower number than others are no new request (RFC 9113, section 5.1.1)", async (t) => {
  const peer = await open(t, server, { silent: true });
  peer.send(greeting, call(5), call(3));
  await peer.end(5);
  peer.send(ping(1));
  await until("its end or a sign of life", () => peer.closed() || peer.frames.some(({ type }) => type === FRAME.ping));
  t.equal(peer.frames.find((came) => came.type === FRAME.goaway)?.payload.readUInt32BE(4), PROTOCOL);
});

t.test("a preface that no SETTINGS follow is none (RFC 9113, section 3.4)", async (t) => {
  const peer = await open(t, server, { silent: true });
  peer.send(PREFACE, ping(1), call(1));
  await until("its end or a sign of life", () => peer.closed() || peer.frames.some(({ type }) => type === FRAME.ping));
  t.equal(peer.frames.find((came) => came.type === FRAME.goaway)?.payload.readUInt32BE(4), PROTOCOL);
});

t.test("what the RFC allows is no fault, and the call among it is served", async (t) => {
  const priority = Buffer.from([0, 0, 0, 0, 16]);
  const request = message("x");
  const cutBlock = [0, 10, 20, block().length].flatMap((from, i, all) =>
    i + 1 < all.length ? [block().subarray(from, all[i + 1])] : [],
  );
  const ways: ReadonlyArray<readonly [what: string, ...frames: Buffer[]]> = [
    ["nothing special", call(1)],
    [
      "frames that are not known",
      frame(0x42, 0xff, 0, Buffer.alloc(99)),
      headers(1),
      frame(0xff, 1, 1),
      data(1, request),
    ],
    [
      "PRIORITY of idle streams and others",
      frame(PRIORITY_TYPE, 0, 9, priority),
      headers(1),
      frame(PRIORITY_TYPE, 0, 1, priority),
      data(1, request),
    ],
    ["padded DATA", headers(1), data(1, padded(request, 255), END_STREAM | PADDED)],
    ["DATA padded with nothing", headers(1), data(1, padded(request, 0), END_STREAM | PADDED)],
    ["DATA that are padding alone", headers(1), data(1, padded(Buffer.alloc(0), 9), PADDED), data(1, request)],
    ["padded HEADERS", headers(1, END_HEADERS | PADDED, padded(block(), 200)), data(1, request)],
    [
      "HEADERS with a priority",
      headers(1, END_HEADERS | PRIORITY, Buffer.concat([priority, block()])),
      data(1, request),
    ],
    [
      "HEADERS with both",
      headers(1, END_HEADERS | PADDED | PRIORITY, padded(Buffer.concat([priority, block()]), 3)),
      data(1, request),
    ],
    [
      "SETTINGS that are not known",
      settings([
        [0x99, 1],
        [0, 7],
        [6, 100],
        [3, 0],
        [1, 10],
      ]),
      call(1),
    ],
    [
      "SETTINGS of 0 bytes, and twice the same",
      settings([]),
      settings([
        [2, 0],
        [2, 1],
      ]),
      call(1),
    ],
    ["GOAWAY of the client", frame(FRAME.goaway, 0, 0, Buffer.alloc(8)), call(1)],
    ["GOAWAY with words", frame(FRAME.goaway, 0, 0, Buffer.concat([Buffer.alloc(8), Buffer.from("bye")])), call(1)],
    [
      "empty DATA",
      headers(1),
      ...Array(50).fill(data(1, Buffer.alloc(0), 0)),
      data(1, request, 0),
      data(1, Buffer.alloc(0)),
    ],
    [
      "a message in pieces",
      headers(1),
      ...Array.from(request, (byte) => data(1, Buffer.from([byte]), 0)),
      data(1, Buffer.alloc(0)),
    ],
    [
      "a block in pieces, some of them empty",
      headers(1, 0, cutBlock[0]),
      frame(FRAME.continuation, 0, 1),
      frame(FRAME.continuation, 0, 1, cutBlock[1]),
      frame(FRAME.continuation, END_HEADERS, 1, cutBlock[2]),
      data(1, request),
    ],
    ["trailers", headers(1), data(1, request, 0), headers(1, END_HEADERS | END_STREAM, field("x-checksum", "1"))],
    ["empty trailers", headers(1), data(1, request, 0), headers(1, END_HEADERS | END_STREAM, Buffer.alloc(0))],
    ["reserved bits", Buffer.from(call(1)).fill(0x80, 5, 6), windowUpdate(0, 2 ** 31 + 5)],
    [
      "flags without meaning",
      frame(FRAME.headers, 0xd2 | END_HEADERS, 1, block()),
      data(1, request, END_STREAM | 0xf6),
    ],
    ["a pong without a ping", frame(FRAME.ping, ACK, 0, Buffer.alloc(8)), call(1)],
    [
      "MAX_FRAME_SIZE at its limits",
      settings([
        [5, FRAME_MAX],
        [5, 2 ** 24 - 1],
      ]),
      call(1),
    ],
    [
      "windows at their limits",
      windowUpdate(0, WINDOW_MAX - FIRST_WINDOW),
      settings([[INITIAL_WINDOW_SIZE, WINDOW_MAX]]),
      call(1),
    ],
    ["a table of no bytes", headers(1, END_HEADERS, Buffer.concat([Buffer.from([0x20]), block()])), data(1, request)],
  ];
  for (const [what, ...frames] of ways) {
    const peer = await open(t, server, { silent: true });
    peer.send(greeting, ...frames);
    t.same(await peer.end(1), { status: 0, reset: undefined }, what);
    t.equal(replyOf(peer, 1), "x", what);
    peer.send(call(99, "again"));
    t.equal((await peer.end(99)).status, 0, `${what}, and the next call`);
    // Late frames of a call that is over.
    peer.send(windowUpdate(1, 5), reset(1), data(1, Buffer.alloc(9)), frame(PRIORITY_TYPE, 0, 1, priority));
    await sync(peer);
    t.notOk(peer.closed(), `${what}, and the connection lives on`);
    peer.socket.destroy();
  }
});

// Streams.

/** What resets its stream alone: it must leave a call of the same connection as it is. */
async function resetsAlone(t: Test, what: string, code: number, frames: (stream: number) => Buffer[]): Promise<void> {
  gate = Promise.withResolvers();
  const peer = await open(t, server, { silent: true });
  peer.send(greeting, frame(FRAME.settings, ACK, 0), call(1, "wait"), ...frames(3), ping(1));
  await until(`${what}: an answer`, () => peer.closed() || peer.frames.some(({ type }) => type === FRAME.ping));
  const resets = peer.frames.filter((came) => came.type === FRAME.reset);
  t.same(
    resets.map(({ stream, payload }) => [stream, payload.readUInt32BE()]),
    [[3, code]],
    what,
  );
  gate.resolve();
  peer.send(call(5, "next"));
  t.same([(await peer.end(1)).status, (await peer.end(5)).status], [0, 0], `${what}: others are served`);
  t.notOk(peer.closed(), `${what}: the connection lives on`);
  peer.socket.destroy();
}

t.test("a fault of a stream ends that stream alone", async (t) => {
  const wait = (stream: number) => call(stream, "wait");
  const malformed = (more: Buffer, before = block()) => [Buffer.concat([before, more])];
  const ofStreams: ReadonlyArray<readonly [what: string, code: number, frames: (stream: number) => Buffer[]]> = [
    ["a window of 0 more", PROTOCOL, (id) => [wait(id), windowUpdate(id, 0)]],
    ["too large a window", FLOW_CONTROL, (id) => [wait(id), windowUpdate(id, WINDOW_MAX)]],
    ["DATA after the end", STREAM_CLOSED, (id) => [wait(id), data(id, message("x"))]],
    ["HEADERS after the end", STREAM_CLOSED, (id) => [wait(id), headers(id, END_HEADERS | END_STREAM)]],
    ["trailers that are not the end", PROTOCOL, (id) => [headers(id), headers(id, END_HEADERS, field("x", "1"))]],
    [
      "too many headers",
      CALM,
      (id) => [headers(id, END_HEADERS, Buffer.concat([block(), ...Array(129).fill(field("x", "1"))]))],
    ],
    [
      "headers of too many bytes",
      CALM,
      (id) => [
        headers(id, 0, block(ONCE, { a: "x".repeat(15_000) })),
        ...Array(3).fill(
          frame(FRAME.continuation, 0, id, block(ONCE, { a: "x".repeat(16_000) }).subarray(-16_000 - 7)),
        ),
        frame(FRAME.continuation, END_HEADERS, id, Buffer.concat(Array(40).fill(field("a", "x".repeat(120))))),
      ],
    ],
    [
      "a name with capitals",
      PROTOCOL,
      (id) => malformed(field("X-Big", "1")).map((all) => headers(id, END_HEADERS, all)),
    ],
    [
      "a pseudo-header after others",
      PROTOCOL,
      (id) => malformed(field(":scheme", "http")).map((all) => headers(id, END_HEADERS, all)),
    ],
    ["NUL in a value", PROTOCOL, (id) => malformed(field("x", "a\0b")).map((all) => headers(id, END_HEADERS, all))],
    [
      "a line's end in a value",
      PROTOCOL,
      (id) => malformed(field("x", "a\r\nb: c")).map((all) => headers(id, END_HEADERS, all)),
    ],
    ["a name of no letters", PROTOCOL, (id) => malformed(field("", "x")).map((all) => headers(id, END_HEADERS, all))],
    ["a name with a space", PROTOCOL, (id) => malformed(field("x y", "x")).map((all) => headers(id, END_HEADERS, all))],
    [
      "a name with a colon inside",
      PROTOCOL,
      (id) => malformed(field("x:y", "x")).map((all) => headers(id, END_HEADERS, all)),
    ],
  ];
  for (const [what, code, frames] of ofStreams) {
    await resetsAlone(t, what, code, frames);
  }
});

t.test("what else RFC 9113 calls malformed ends its stream alone (sections 8.1 to 8.3)", async (t) => {
  const request = (id: number, fields: Buffer) => [headers(id, END_HEADERS, fields), data(id, message("wait"))];
  const pseudo = (...pairs: Array<[string, string]>) => Buffer.concat(pairs.map(([name, value]) => field(name, value)));
  const rest = pseudo(["content-type", "application/grpc"], ["te", "trailers"]);
  const all: Array<[string, string]> = [
    [":method", "POST"],
    [":scheme", "http"],
    [":path", ONCE],
    [":authority", "localhost"],
  ];
  await resetsAlone(t, "a header of the connection", PROTOCOL, (id) =>
    request(id, Buffer.concat([pseudo(...all), rest, field("connection", "close")])),
  );
  await resetsAlone(t, "a path twice", PROTOCOL, (id) =>
    request(id, Buffer.concat([pseudo(...all, [":path", REPEAT]), rest])),
  );
  await resetsAlone(t, "no path", PROTOCOL, (id) =>
    request(id, Buffer.concat([pseudo(...all.filter(([name]) => name !== ":path")), rest])),
  );
  await resetsAlone(t, "no method", PROTOCOL, (id) =>
    request(id, Buffer.concat([pseudo(...all.filter(([name]) => name !== ":method")), rest])),
  );
  await resetsAlone(t, "a pseudo-header that is not known", PROTOCOL, (id) =>
    request(id, Buffer.concat([pseudo(...all, [":status", "200"]), rest])),
  );
  await resetsAlone(t, "a pseudo-header in trailers", PROTOCOL, (id) => [
    headers(id),
    data(id, message("wait"), 0),
    headers(id, END_HEADERS | END_STREAM, field(":path", "/")),
  ]);
});

// Windows.

t.test("who sends more than its stream's window is stopped, however many others go on", async (t) => {
  gate = Promise.withResolvers();
  const peer = await open(t, server);
  const held = peer.begin(ECHO);
  peer.send(data(held, message("wait"), 0));
  await sync(peer);
  const piece = message(letters(FRAME_MAX - 20));
  let sent = 0;
  while (!peer.frames.some((came) => came.type === FRAME.reset) && sent < 20 * FRAME_MAX) {
    peer.send(data(held, piece, 0));
    sent += piece.length;
    await sync(peer);
  }
  t.equal((await peer.end(held)).reset, FLOW_CONTROL);
  t.ok(sent >= FIRST_WINDOW && sent < 10 * FRAME_MAX, `${sent} bytes were sent`);
  t.ok(await served(peer));
  gate.resolve();
});

/** Sends a stream's body as windows allow it, all at once from the beginning. */
async function upload(peer: HostilePeer, stream: number, body: Buffer): Promise<void> {
  let at = 0;
  const window = (of: number) =>
    peer.frames
      .filter((came) => came.type === FRAME.windowUpdate && came.stream === of)
      .reduce((sum, { payload }) => sum + payload.readUInt32BE(), FIRST_WINDOW);
  while (at < body.length) {
    const parts: Buffer[] = [];
    const to = Math.min(body.length, window(0), window(stream));
    while (at < to) {
      const bytes = Math.min(FRAME_MAX, to - at);
      parts.push(data(stream, body.subarray(at, at + bytes), at + bytes === body.length ? END_STREAM : 0));
      at += bytes;
    }
    if (parts.length > 0) {
      peer.send(...parts);
    }
    const isOver = (came: Frame) => came.stream === stream && (came.flags & END_STREAM) !== 0;
    await until(
      `more than ${at} of ${body.length} bytes to be taken`,
      () => at === body.length || Math.min(window(0), window(stream)) > at || peer.closed() || peer.frames.some(isOver),
      2000,
    );
    if (peer.closed() || peer.frames.some(isOver)) {
      return;
    }
  }
}

t.test("a stream of requests that are larger than its window: none keeps it closed for ever", async (t) => {
  for (const sizes of [
    [10],
    [FIRST_WINDOW + 100],
    [1, 100_000],
    [100_000, 100_000, 100_000],
    [30_000, 70_000, 5, 90_000],
  ]) {
    const peer = await open(t, server);
    const stream = peer.begin(COUNT);
    const body = Buffer.concat(sizes.map((size) => message("x".repeat(size))));
    const sent = await upload(peer, stream, body).then(
      () => true,
      (error: Error) => error.message,
    );
    t.equal(sent, true, `messages of ${sizes} bytes`);
    if (sent === true) {
      t.equal((await peer.end(stream)).status, 0);
      t.equal(replyOf(peer, stream), `${sizes.length} ${sizes.reduce((sum, size) => sum + size, 0)}`);
    }
    peer.socket.destroy();
  }
});

t.test("a large request in one call arrives whole", async (t) => {
  const peer = await open(t, server);
  const stream = peer.begin(ONCE);
  await upload(peer, stream, message(letters(300_000)));
  peer.send(windowUpdate(stream, 300_000), windowUpdate(0, 300_000));
  t.equal((await peer.end(stream)).status, 0);
  t.equal(replyOf(peer, stream), letters(300_000));
});

t.test("a reply goes as windows open, also those that were made smaller than nothing", async (t) => {
  const peer = await open(t, server, { windowBytes: 0 });
  const stream = peer.call(ONCE, message("size:100000"));
  await peer.got(FRAME.headers, stream);
  const got = async () => {
    await sync(peer);
    return bytesOf(peer, stream).length;
  };
  t.equal(await got(), 0, "no window, no body");
  for (let bytes = 1; bytes <= 7; bytes++) {
    peer.send(windowUpdate(stream, 1));
    t.equal(await got(), bytes, "a byte at a time");
  }
  peer.send(settings([[INITIAL_WINDOW_SIZE, 1000]]));
  t.equal(await got(), 1007, "more for all");
  peer.send(settings([[INITIAL_WINDOW_SIZE, 100]]));
  t.equal(await got(), 1007, "900 less than nothing");
  peer.send(windowUpdate(stream, 500));
  t.equal(await got(), 1007, "still 400 less");
  peer.send(windowUpdate(stream, 401));
  t.equal(await got(), 1008);
  const second = peer.call(ONCE, message("size:1000"));
  await peer.got(FRAME.headers, second);
  await sync(peer);
  t.equal(bytesOf(peer, second).length, 100, "new streams get what was said last");
  peer.send(settings([[INITIAL_WINDOW_SIZE, 0]]), settings([[INITIAL_WINDOW_SIZE, WINDOW_MAX - 3000]]));
  await until("all that the connection's window allows", () => bytesOf(peer, stream).length > 60_000);
  await sync(peer);
  const inAll = () => bytesOf(peer, stream).length + bytesOf(peer, second).length;
  t.equal(inAll(), FIRST_WINDOW, "the connection's window is used to the last byte");
  peer.send(windowUpdate(0, 1));
  await sync(peer);
  t.equal(inAll(), FIRST_WINDOW + 1);
  peer.send(windowUpdate(0, 1_000_000));
  t.same([(await peer.end(stream)).status, (await peer.end(second)).status], [0, 0]);
  t.equal(replyOf(peer, stream), letters(100_000));
  t.equal(replyOf(peer, second), letters(1000));
});

t.test("an empty reply needs no window; a stream of replies is whole and in order through a narrow one", async (t) => {
  const peer = await open(t, server, { windowBytes: 0 });
  t.equal((await peer.end(peer.call("/test.Kinds/None", message("x")))).status, grpc.status.UNIMPLEMENTED);
  const stream = peer.call(REPEAT, message("200x50"));
  while (!peer.frames.some((came) => came.stream === stream && (came.flags & END_STREAM) !== 0)) {
    peer.send(windowUpdate(stream, 777));
    await sync(peer);
  }
  let rest = bytesOf(peer, stream);
  const seen: string[] = [];
  while (rest.length > 0) {
    const end = 5 + rest.readUInt32BE(1);
    seen.push(decode(rest.subarray(5, end)));
    rest = rest.subarray(end);
  }
  t.same(
    seen,
    Array.from({ length: 200 }, (_, i) => `${i}`.padEnd(50, "-")),
  );
});

t.test("large replies share a connection, a frame of each in turn, and no frame is too long", async (t) => {
  const size = 1 << 20;
  // They begin in turn, and none may send before all have begun.
  const peer = await open(t, server, { windowBytes: 0 });
  const streams = Array.from({ length: 8 }, () => peer.call(ONCE, message(`size:${size}`)));
  await Promise.all(streams.map((stream) => peer.got(FRAME.headers, stream)));
  peer.send(settings([[INITIAL_WINDOW_SIZE, WINDOW_MAX]]));
  let allowed = FIRST_WINDOW;
  const inAll = () => streams.reduce((sum, stream) => sum + bytesOf(peer, stream).length, 0);
  for (let round = 0; round < 10; round++) {
    peer.send(windowUpdate(0, 300_000));
    allowed += 300_000;
    await until("what the window allows", () => inAll() >= allowed);
    const each = streams.map((stream) => bytesOf(peer, stream).length);
    const apart = Math.max(...each) - Math.min(...each);
    t.ok(apart <= 2 * FRAME_MAX, `at most two frames apart: ${each}`);
  }
  t.equal(inAll(), allowed);
  peer.send(windowUpdate(0, 8 * size));
  for (const stream of streams) {
    t.equal((await peer.end(stream)).status, 0);
    t.ok(replyOf(peer, stream) === letters(size), `reply ${stream} is whole`);
  }
  t.equal(Math.max(...peer.frames.map(({ payload }) => payload.length)), FRAME_MAX);
});

t.test("node's client, with a table for headers and without", async (t) => {
  for (const headerTableSize of [0, 100, 4096, 65_536]) {
    const session = connectHttp2(`http://127.0.0.1:${server.port}`, { settings: { headerTableSize } });
    t.teardown(() => session.destroy());
    for (let round = 0; round < 3; round++) {
      const request = session.request({
        ":method": "POST",
        ":path": ONCE,
        "content-type": "application/grpc",
        te: "trailers",
      });
      let status: unknown;
      let trailers: Record<string, unknown> = {};
      const pieces: Buffer[] = [];
      request.on("response", (head) => {
        status = head[":status"];
      });
      request.on("trailers", (fields) => {
        trailers = fields;
      });
      request.on("data", (piece: Buffer) => pieces.push(piece));
      request.end(message(`round ${round}`));
      await once(request, "close");
      t.same([status, trailers["grpc-status"]], [200, "0"], `a table of ${headerTableSize}`);
      t.equal(decode(Buffer.concat(pieces).subarray(5)), `round ${round}`);
      session.settings({ headerTableSize: headerTableSize === 0 ? 4096 : 0 });
    }
    session.close();
    await once(session, "close");
  }
});

// Pieces.

const turn = () => new Promise((resolve) => setImmediate(resolve));

t.test("bytes may come one at a time, all at once, or cut anywhere", async (t) => {
  const all = Buffer.concat([
    greeting,
    frame(FRAME.settings, ACK, 0),
    headers(1, 0, block().subarray(0, 30)),
    frame(FRAME.continuation, END_HEADERS, 1, block().subarray(30)),
    data(1, padded(message("first"), 4), PADDED),
    headers(1, END_HEADERS | END_STREAM, Buffer.alloc(0)),
    ping(5),
    call(3, "second"),
  ]);
  const check = async (what: string, send: (socket: Socket) => Promise<void> | void) => {
    const peer = await openHostilePeer(server.port, { silent: true });
    await send(peer.socket);
    t.same([(await peer.end(1)).status, (await peer.end(3)).status], [0, 0], what);
    t.same([replyOf(peer, 1), replyOf(peer, 3)], ["first", "second"], what);
    peer.socket.destroy();
  };
  await check("all at once", (socket) => void socket.write(all));
  await check("one at a time", async (socket) => {
    for (const byte of all) {
      socket.write(Buffer.from([byte]));
      await turn();
      await turn();
    }
  });
  for (let at = 1; at < all.length; at++) {
    await check(`cut at ${at}`, async (socket) => {
      socket.write(all.subarray(0, at));
      await turn();
      await turn();
      socket.write(all.subarray(at));
    });
  }
  await check("a hundred calls in one piece", (socket) => {
    socket.write(Buffer.concat([all, ...Array.from({ length: 30 }, (_, i) => call(5 + 2 * i))]));
  });
  await until("the end of all", () => server.connections() === 0);
});

// Resets and refusals.

t.test("resets one after the other end a connection, the client's own and those that it causes", async (t) => {
  const ways: ReadonlyArray<readonly [what: string, frames: (stream: number) => Buffer[]]> = [
    ["its own", (id) => [headers(id), reset(id)]],
    ["its own of whole calls", (id) => [call(id, "hang"), reset(id)]],
    ["by windows of 0", (id) => [call(id, "hang"), windowUpdate(id, 0)]],
    ["by DATA after the end", (id) => [call(id, "hang"), data(id, message("x"))]],
    ["by malformed headers", (id) => [headers(id, END_HEADERS, Buffer.concat([block(), field("X", "1")]))]],
    ["of calls that are over", (id) => [headers(id), reset(id), reset(id)]],
  ];
  gate = Promise.withResolvers();
  for (const [what, frames] of ways) {
    const few = await open(t, server, { silent: true });
    const half = Math.floor(RESET_BURST_COUNT / 2);
    few.send(greeting, ...Array.from({ length: half }, (_, i) => frames(1 + 2 * i)).flat(), call(9999));
    t.equal((await few.end(9999)).status, 0, `${half} ${what}: served`);
    const many = await open(t, server, { silent: true });
    many.send(greeting, ...Array.from({ length: 2 * RESET_BURST_COUNT }, (_, i) => frames(1 + 2 * i)).flat());
    t.equal(await goneFor(many), CALM, what);
    few.socket.destroy();
  }
  gate.resolve();
});

t.test("more calls at once than allowed: refused to who may not know, a fault of who does", async (t) => {
  gate = Promise.withResolvers();
  const peer = await open(t, server, { silent: true });
  const limit = 32;
  peer.send(greeting, ...Array.from({ length: limit + 3 }, (_, i) => call(1 + 2 * i, "wait")));
  for (const stream of [limit, limit + 1, limit + 2].map((i) => 1 + 2 * i)) {
    t.equal((await peer.end(stream)).reset, REFUSED);
  }
  peer.send(frame(FRAME.settings, ACK, 0), call(501, "wait"));
  t.equal(await goneFor(peer), PROTOCOL);
  t.notOk(
    peer.frames.some((came) => came.type === FRAME.headers),
    "none of them was answered",
  );
  gate.resolve();
});

t.test("a refused call's body and trailers were on their way already: they are no fault", async (t) => {
  gate = Promise.withResolvers();
  const peer = await open(t, server, { silent: true });
  const refused = 1 + 2 * 32;
  peer.send(
    greeting,
    ...Array.from({ length: 33 }, (_, i) => headers(1 + 2 * i)),
    data(refused, message("x"), 0),
    headers(refused, END_HEADERS | END_STREAM, field("x-checksum", "1")),
    ping(1),
  );
  t.equal((await peer.end(refused)).reset, REFUSED);
  await until("an answer", () => peer.closed() || peer.frames.some(({ type }) => type === FRAME.ping));
  t.notOk(
    peer.frames.some(({ type }) => type === FRAME.goaway),
    "its connection lives on",
  );
  gate.resolve();
});

// The end.

t.test("a stop: what runs ends well, what comes after it is not looked at, then all connections end", async (t) => {
  gate = Promise.withResolvers();
  const own = await start(t);
  const busy = await open(t, own);
  const idle = await open(t, own);
  const silent = await open(t, own, { silent: true });
  await sync(idle);
  const waits = busy.call(ONCE, message("wait"));
  const large = busy.call(ONCE, message("size:200000"));
  await busy.got(FRAME.data, large);
  let stopped = false;
  const stop = own.stop(20_000).then(() => {
    stopped = true;
  });
  t.same([await goneFor(idle), await goneFor(silent)], [0, 0], "who has no call goes at once");
  const goaway = await busy.got(FRAME.goaway, 0);
  t.same([goaway.payload.readUInt32BE(), goaway.payload.readUInt32BE(4)], [large, 0]);
  const late = busy.call(ONCE, message("late"));
  await sync(busy);
  t.notOk(
    busy.frames.some((came) => came.stream === late),
    "a call after it gets no answer",
  );
  t.notOk(stopped, "the stop waits");
  gate.resolve();
  busy.send(windowUpdate(0, 300_000));
  t.equal((await busy.end(waits)).status, 0);
  await sync(busy);
  t.notOk(busy.closed(), "a reply on its way is waited for");
  busy.send(windowUpdate(large, 300_000));
  t.equal((await busy.end(large)).status, 0);
  t.equal(replyOf(busy, large), letters(200_000));
  await busy.ended();
  await stop;
  t.equal(own.connections(), 0);
  await t.rejects(dial(own.port), "nobody listens");
});

t.test("who asks and reads nothing is let go before its answers fill the memory", async (t) => {
  const many = (bytes: Buffer) => Buffer.concat(Array(Math.ceil(65_536 / bytes.length)).fill(bytes));
  for (const [what, piece] of [
    ["pings", () => many(ping())],
    ["settings", () => many(settings([[1, 0]]))],
    ["refused calls", undefined],
  ] as const) {
    const own = await start(t);
    const socket = await dial(own.port);
    socket.on("error", () => undefined);
    socket.pause();
    socket.write(greeting);
    if (piece === undefined) {
      socket.write(Buffer.concat(Array.from({ length: 32 }, (_, i) => headers(1 + 2 * i, END_HEADERS, block(ECHO)))));
    }
    let next = 101;
    const refused = () =>
      Buffer.concat(
        Array.from({ length: 500 }, () => {
          next += 2;
          return headers(next);
        }),
      );
    let sent = 0;
    const end = performance.now() + 15_000;
    await until("a connection", () => own.connections() === 1);
    while (own.connections() === 1 && performance.now() < end && sent < 512 * 1024 * 1024) {
      const bytes = (piece ?? refused)();
      sent += bytes.length;
      if (!socket.write(bytes)) {
        await turn();
      }
      if (socket.writableLength > 4_000_000) {
        await turn();
      }
    }
    t.equal(own.connections(), 0, `${what}: it ended after ${sent} bytes`);
    socket.destroy();
    await own.stop(0);
  }
});

t.test(
  "streams that are over leave nothing behind, also where a connection's window keeps all others waiting",
  async (t) => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const refs: Array<WeakRef<Http2Stream>> = [];
    const head = callHeaders("/");
    const listener = createServer((socket) => {
      new Http2Connection({
        socket,
        limits: {
          streamsCount: 32,
          headerListBytes: 65_535,
          headerPairsCount: 128,
          resetBurstCount: 1e9,
          resetsPerS: 1,
        },
        onRequest(stream) {
          refs.push(new WeakRef(stream));
          stream.sendHead(Buffer.from([0x88]));
          stream.send(Buffer.alloc(FIRST_WINDOW));
          return { onData() {}, onEnd() {}, onDrain() {}, onClose() {} };
        },
      });
    });
    await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
    t.teardown(() => listener.close());
    const { port } = listener.address() as { port: number };
    const peer = await open(t, { port });
    const first = peer.begin("/");
    await until("the window to be used up", () => bytesOf(peer, first).length === FIRST_WINDOW);
    let next = 3;
    for (let round = 0; round < 20; round++) {
      const parts: Buffer[] = [];
      for (let i = 0; i < 100; i++, next += 2) {
        parts.push(headers(next, END_HEADERS, head), reset(next));
      }
      peer.send(...parts);
      await sync(peer);
    }
    t.equal(refs.length, 2001);
    await turn();
    collect();
    const alive = refs.filter((ref) => ref.deref() !== undefined).length;
    t.ok(alive < 50, `${alive} of ${refs.length} streams are still there`);
    peer.socket.destroy();
  },
);

// gRPC.

t.test("what is no call of gRPC gets HTTP's own status", async (t) => {
  const session = connectHttp2(`http://127.0.0.1:${server.port}`);
  t.teardown(() => session.destroy());
  for (const [what, status, fields] of [
    ["another content", 415, { ":method": "POST", "content-type": "application/json" }],
    ["no content type", 415, { ":method": "POST" }],
    ["gRPC-Web", 415, { ":method": "POST", "content-type": "application/grpc-web+proto" }],
    ["GET", 405, { ":method": "GET", "content-type": "application/grpc" }],
    ["HEAD", 405, { ":method": "HEAD" }],
    ["a call", 200, { ":method": "POST", "content-type": "application/grpc+proto" }],
    ["a call in another form", 200, { ":method": "POST", "content-type": "application/grpc;charset=utf-8" }],
  ] as const) {
    const request = session.request({ ":path": ONCE, te: "trailers", ...fields }, { endStream: false });
    if (status === 200) {
      request.end(message("x"));
    }
    const [head] = (await once(request, "response")) as [Record<string, unknown>];
    t.equal(head[":status"], status, what);
    request.on("error", () => undefined);
    request.resume();
    request.end();
    await once(request, "close");
  }
});

t.test("a request that is no whole call says what is wrong with it", async (t) => {
  const peer = await open(t, server);
  const { INVALID_ARGUMENT, UNIMPLEMENTED } = grpc.status;
  const packed = Buffer.from(message("x")).fill(1, 0, 1);
  const ways: ReadonlyArray<readonly [string, number, string, Readonly<Record<string, string>>, Buffer]> = [
    ["no message", INVALID_ARGUMENT, ONCE, {}, Buffer.alloc(0)],
    ["two messages", INVALID_ARGUMENT, ONCE, {}, Buffer.concat([message("x"), message("y")])],
    ["a message and a byte", INVALID_ARGUMENT, ONCE, {}, Buffer.concat([message("x"), Buffer.alloc(1)])],
    ["half a message", INVALID_ARGUMENT, ONCE, {}, message("xxxxxx").subarray(0, -2)],
    ["half a prefix", INVALID_ARGUMENT, ONCE, {}, Buffer.alloc(3)],
    ["no message of a stream's", INVALID_ARGUMENT, REPEAT, {}, Buffer.alloc(0)],
    [
      "half a message of several",
      INVALID_ARGUMENT,
      COUNT,
      {},
      Buffer.concat([message("x"), message("y").subarray(0, 6)]),
    ],
    ["a message that is none", INVALID_ARGUMENT, ONCE, {}, grpcMessage(Buffer.from([0xff, 0xff, 0xff]))],
    ["compressed, not said how", INVALID_ARGUMENT, ONCE, {}, packed],
    ["compressed, said to be not", INVALID_ARGUMENT, ONCE, { "grpc-encoding": "identity" }, packed],
    ["compressed, and it is not", INVALID_ARGUMENT, ONCE, { "grpc-encoding": "gzip" }, packed],
    ["compressed in a way that is not known", UNIMPLEMENTED, ONCE, { "grpc-encoding": "snappy" }, packed],
    ["a name that objects have", UNIMPLEMENTED, ONCE, { "grpc-encoding": "constructor" }, packed],
    ["another such name", UNIMPLEMENTED, ONCE, { "grpc-encoding": "__proto__" }, packed],
    ["a method that is not known", UNIMPLEMENTED, "/test.Kinds/None", {}, message("x")],
    ["a service that is not known", UNIMPLEMENTED, "/constructor", {}, message("x")],
    ["a path that is none", UNIMPLEMENTED, "\xff\xfe", {}, message("x")],
    ...["1", "S", "-1S", "1s", "999999999S", "1.5S", "1 S", "1SS"].map(
      (timeout) =>
        [`grpc-timeout ${timeout}`, INVALID_ARGUMENT, ONCE, { "grpc-timeout": timeout }, message("x")] as const,
    ),
    ["too long a message", grpc.status.RESOURCE_EXHAUSTED, ONCE, {}, Buffer.from([0, 0xff, 0xff, 0xff, 0xff, 1])],
    [
      "a message of a stream's that is too long",
      grpc.status.RESOURCE_EXHAUSTED,
      COUNT,
      {},
      Buffer.from([0, 0x7f, 0, 0, 0]),
    ],
    ["not compressed, said how it could be", 0, ONCE, { "grpc-encoding": "snappy" }, message("x")],
    ["no messages of a stream's", 0, COUNT, {}, Buffer.alloc(0)],
    ["a header that is a token with odd letters", 0, ONCE, { "x!#$%&'*+.^_`|~9": "1" }, message("header:x")],
  ];
  for (const [what, status, path, more, body] of ways) {
    const stream = peer.begin(path, more);
    peer.send(data(stream, body));
    t.equal((await peer.end(stream)).status, status, what);
  }
  // None of these is a token (RFC 9110, section 5.6.2); the caller is at fault, not the server.
  for (const name of ["x(y", "x,y", "x/y", "x@y", "x{y"]) {
    const stream = peer.begin(ONCE, { [name]: "1" });
    peer.send(data(stream, message("header:x")));
    const { status, reset } = await peer.end(stream);
    t.ok(
      reset === PROTOCOL || status === 0 || status === INVALID_ARGUMENT,
      `a header named ${name}: status ${status}, reset ${reset}`,
    );
  }
});

t.test("words of a status that are not ASCII arrive as they are; binary metadata too", async (t) => {
  const client = new grpc.Client(`127.0.0.1:${server.port}`, grpc.credentials.createInsecure());
  t.teardown(() => client.close());
  const ask = (text: string, metadata = new grpc.Metadata(), options: grpc.CallOptions = {}) =>
    new Promise<string>((resolve, reject) => {
      client.makeUnaryRequest(ONCE, encode, decode, text, metadata, options, (error, reply) =>
        error === null ? resolve(reply ?? "") : reject(error),
      );
    });
  for (const words of ["größer als \u{1f40c}", "100 % of %41", "tab\tand\nline", " \u6f22 "]) {
    await t.rejects(ask(`fail:${words}`), { code: grpc.status.OUT_OF_RANGE, details: words });
  }
  for (const bytes of [[], [0], [0, 255, 254, 10], Array.from({ length: 256 }, (_, i) => i)]) {
    const metadata = new grpc.Metadata();
    metadata.set("x-trace-bin", Buffer.from(bytes));
    t.equal(await ask("header:x-trace-bin", metadata), Buffer.from(bytes).toString("base64"));
  }
});

t.test("the server keeps a deadline, whatever the client and the handler do; a far one is none", async (t) => {
  gate = Promise.withResolvers();
  const peer = await open(t, server);
  const begin = (path: string, timeout: string, text: string, flags = END_STREAM) => {
    const stream = peer.begin(path, { "grpc-timeout": timeout });
    peer.send(data(stream, message(text), flags));
    return stream;
  };
  const late = [
    begin(ONCE, "50m", "hang"),
    begin(ECHO, "50000u", "hang", 0),
    begin(COUNT, "50m", "x", 0),
    peer.begin(ONCE, { "grpc-timeout": "1n" }),
  ];
  for (const stream of late) {
    t.equal((await peer.end(stream)).status, grpc.status.DEADLINE_EXCEEDED);
  }
  for (const timeout of ["60S", "600H", "99999999S", "99999999H"]) {
    const stream = begin(ONCE, timeout, "signal:20");
    t.equal((await peer.end(stream)).status, 0);
    t.equal(replyOf(peer, stream), "false", `grpc-timeout ${timeout}: its handler is not told to give up`);
  }
  gate.resolve();
  await until("the end of all handlers", () => running === 0);
});

t.test("headers count among the bytes that an address may have", async (t) => {
  const limits = { bytesPerAddress: 256 * 1024, stalledCallMs: 60_000 };
  const own = await start(t, { limits });
  const peer = await open(t, own);
  const streams = Array.from({ length: 20 }, () => {
    const value = "v".repeat(15_000);
    const stream = peer.begin(COUNT, { a: value });
    return stream;
  });
  await sync(peer);
  const refusedCount = streams.filter((stream) =>
    peer.frames.some((came) => came.stream === stream && (came.flags & END_STREAM) !== 0),
  ).length;
  t.ok(refusedCount > 0, `${refusedCount} of 20 calls with 300,000 bytes of headers were refused`);
});

// Anything at all.

t.test("twenty thousand wrong sequences: nobody else notices, and nothing stays", async (t) => {
  const random = createRandom(9113);
  const own = await start(t, { limits: { stalledCallMs: 2000 } });
  const good = await open(t, own);
  const base = 1 << 20;
  const priority = Buffer.from([0, 0, 0, 0, 16]);
  /** Right sequences of a stream, which share nothing but the connection. */
  const sequences: ReadonlyArray<(id: number) => Buffer> = [
    (id) => call(id, "x"),
    (id) => call(id, "size:3000"),
    (id) => Buffer.concat([call(id, "wait"), reset(id)]),
    (id) => Buffer.concat([call(id, "5x100", REPEAT), windowUpdate(id, 100), windowUpdate(0, 1000)]),
    (id) => Buffer.concat([headers(id, END_HEADERS, block(COUNT)), data(id, message("a"), 0), data(id, message("b"))]),
    (id) =>
      Buffer.concat([headers(id, END_HEADERS, block(ECHO)), data(id, message("a"), 0), data(id, message("size:9"))]),
    (id) =>
      Buffer.concat([
        headers(id, 0, block().subarray(0, 40)),
        frame(FRAME.continuation, END_HEADERS, id, block().subarray(40)),
        data(id, message("x")),
      ]),
    (id) =>
      Buffer.concat([
        headers(id, END_HEADERS | PADDED, padded(block(), 9)),
        data(id, padded(message("x"), 7), PADDED | END_STREAM),
      ]),
    (id) =>
      Buffer.concat([
        headers(id, END_HEADERS | PRIORITY, Buffer.concat([priority, block()])),
        frame(PRIORITY_TYPE, 0, id, priority),
        data(id, message("x")),
      ]),
    (id) =>
      Buffer.concat([
        settings([
          [INITIAL_WINDOW_SIZE, 70_000],
          [5, FRAME_MAX],
        ]),
        ping(id),
        call(id, "y"),
      ]),
    (id) =>
      Buffer.concat([headers(id), data(id, message("x"), 0), headers(id, END_HEADERS | END_STREAM, field("a", "b"))]),
    (id) =>
      Buffer.concat([
        headers(id, END_HEADERS, block(ONCE, { "grpc-timeout": "10m", "x-bin": "AAAA" })),
        data(id, message("hang")),
      ]),
    (id) =>
      Buffer.concat([
        headers(id, END_HEADERS, block(ONCE, { "grpc-encoding": "gzip" })),
        data(id, Buffer.from([1, 0, 0, 0, 1, 9])),
      ]),
    (id) =>
      Buffer.concat([
        headers(
          id,
          END_HEADERS,
          Buffer.concat([block(), Buffer.from([0x40]), field("k", "v").subarray(1), Buffer.from([0xbe])]),
        ),
        data(id, message("x")),
      ]),
    (id) => Buffer.concat([headers(id | 1, END_HEADERS | END_STREAM), frame(FRAME.goaway, 0, 0, Buffer.alloc(8))]),
  ];
  /** Half of the changes leave frames whole: they get behind what looks at frames alone. */
  const mutate = (bytes: Buffer): Buffer => {
    if (random.oneIn(3)) {
      return mutateBytes(bytes, random);
    }
    const frames: Frame[] = [];
    frameReader((came) => frames.push(came))(bytes);
    const changed = random.below(frames.length);
    const act = random.below(6);
    return Buffer.concat(
      frames.flatMap((came, i) => {
        const same = frame(came.type, came.flags, came.stream, came.payload);
        if (i !== changed) {
          return [same];
        }
        switch (act) {
          case 0:
            return [];
          case 1:
            return [same, same];
          case 2:
            return [frame(came.type, came.flags ^ (1 << random.below(8)), came.stream, came.payload)];
          case 3:
            return [frame(random.below(11), came.flags, came.stream, came.payload)];
          case 4:
            return [frame(came.type, came.flags, Math.max(0, came.stream + random.below(7) - 3), came.payload)];
          default: {
            const payload = mutateBytes(came.payload, random);
            return [frame(came.type, came.flags, came.stream, payload.subarray(0, FRAME_MAX))];
          }
        }
      }),
    );
  };
  gate = Promise.withResolvers();
  let done = 0;
  let connections = 0;
  const total = 20_000;
  const worker = async () => {
    while (done < total) {
      connections += 1;
      const socket = await dial(own.port);
      let closed = false;
      let pongs = 0;
      socket.on("error", () => undefined);
      socket.on("close", () => {
        closed = true;
      });
      socket.on(
        "data",
        frameReader(({ type, flags }) => {
          pongs += type === FRAME.ping && (flags & ACK) !== 0 ? 1 : 0;
        }),
      );
      socket.write(greeting);
      let id = 1;
      for (let count = 0; count < 100 && !closed && done < total; count++) {
        done += 1;
        const bytes = mutate(random.pick(sequences)(id));
        id += 2 * (1 + random.below(3));
        const cut = random.oneIn(4) ? random.below(bytes.length) : 0;
        const before = pongs;
        if (cut > 0) {
          socket.write(bytes.subarray(0, cut));
          await turn();
        }
        socket.write(Buffer.concat([bytes.subarray(cut), ping(base)]));
        // What was cut off may have swallowed the ping.
        for (let turns = 0; turns < 6 && !closed && pongs === before; turns++) {
          await turn();
        }
      }
      random.oneIn(2) ? socket.destroy() : socket.end();
    }
  };
  let isOver = false;
  let servedCount = 0;
  const between = async () => {
    while (!isOver) {
      servedCount += (await served(good, `between ${servedCount}`)) ? 1 : 0;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  const betweens = between();
  await Promise.all(Array.from({ length: 8 }, worker));
  isOver = true;
  await betweens;
  t.ok(servedCount > 10, `${servedCount} good calls were served in between`);
  t.ok(connections >= 200, `${connections} connections`);
  t.ok(await served(good), "and one after it");
  gate.resolve();
  await until("all wrong connections to be gone", () => own.connections() === 1, 10_000);
  await until("all handlers to be over", () => running === 0, 10_000);
  good.socket.destroy();
  await until("the last connection to be gone", () => own.connections() === 0);
});

t.test(
  "all that was opened is closed, no handler runs, and nothing escaped to where it would end the program",
  async (t) => {
    await until("the end of all handlers", () => running === 0);
    await until("the end of all connections", () => server.connections() === 0);
    t.same(faults, []);
    t.equal(constants.NGHTTP2_ENHANCE_YOUR_CALM, CALM);
  },
);
