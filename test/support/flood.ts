// node flood.ts PORT MS KIND floods a control plane from 127.0.0.1, for MS, and says "KIND COUNT".
import { randomBytes } from "node:crypto";
import { type ClientHttp2Stream, connect as connectHttp2 } from "node:http2";
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import { AnnounceRequestSchema } from "@weightline/proto/node";
import { MESSAGE_VALUES_MAX_COUNT } from "@weightline/runtime";
import {
  callHeaders,
  dial,
  END_HEADERS,
  END_STREAM,
  FRAME,
  frame,
  grpcMessage,
  INITIAL_WINDOW_SIZE,
  openRawConnection,
  PREFACE,
  prepareCall,
  settings,
} from "./http2-frames.ts";

const P2P = "/model_express.p2p.P2pService";
const LIST = `${P2P}/ListSources`;
const MESSAGE_BYTES = 100 * 1024 * 1024;
const GREETING = Buffer.concat([PREFACE, settings([])]);
/** What is written at once. */
const BATCH = 200;
/** Calls at once that the server allows on a connection. */
const STREAMS = 32;
const HELD_CONNECTIONS = 1500;
/** On a busy machine a flood may need so long to begin. */
const LATE_MS = 20_000;

/** Does one step of a flood; gives how many things it did. */
type Step = () => Promise<number>;

function opened(port: number): Promise<Socket | undefined> {
  return dial(port).catch(() => undefined);
}

/** Writes the same again and again on one connection after another: a server may end it at any time. */
function onConnections(port: number, greeting: Buffer, batch: (stream: number) => Buffer): Step {
  let socket: Socket | undefined;
  let stream = 1;
  return async () => {
    if (socket === undefined || socket.destroyed) {
      socket = await opened(port);
      socket?.on("error", () => undefined);
      socket?.resume();
      socket?.write(greeting);
      stream = 1;
    }
    if (socket === undefined) {
      return 0;
    }
    const written = socket.write(batch(stream));
    stream += 2 * BATCH;
    if (!written) {
      const full = socket;
      await Promise.race([new Promise((resolve) => full.once("drain", resolve).once("close", resolve)), sleep(200)]);
    }
    return BATCH;
  };
}

const many = (make: (i: number) => Buffer) => Buffer.concat(Array.from({ length: BATCH }, (_, i) => make(i)));
const headers = (stream: number, path = LIST) => frame(FRAME.headers, END_HEADERS, stream, callHeaders(path));
const cancel = (stream: number) => frame(FRAME.reset, 0, stream, Buffer.from([0, 0, 0, 8]));

/** A call that comes back as soon as it ends, so many at once. */
async function pressing(port: number, connections: number, atOnce: number, message: Buffer): Promise<Step> {
  const open = await Promise.all(Array.from({ length: connections }, () => openRawConnection(port)));
  const call = prepareCall(LIST, message);
  let done = 0;
  const again = (i: number) => {
    open[i]?.send(call, false, () => {
      done += 1;
      again(i);
    });
  };
  for (let i = 0; i < connections * atOnce; i++) {
    again(i % connections);
  }
  return async () => {
    await sleep(10);
    const ended = done;
    done = 0;
    return ended;
  };
}

/** Sends one message after another with node's own HTTP/2, which keeps to windows. */
function sending(port: number, path: string, bytes: Buffer): Step {
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  session.on("error", () => undefined);
  return () =>
    new Promise((resolve) => {
      const stream = session.request({ ":method": "POST", ":path": path, "content-type": "application/grpc" });
      stream.on("error", () => undefined).on("close", () => resolve(1));
      stream.resume();
      stream.end(bytes);
    });
}

/** Messages on streams that each take many, as fast as the server takes them. */
function streaming(port: number, path: string, messages: Buffer): Step {
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  session.on("error", () => undefined);
  const headers = { ":method": "POST", ":path": path, "content-type": "application/grpc" };
  const streams = Array.from({ length: STREAMS }, () => session.request(headers));
  for (const stream of streams) {
    stream.on("error", () => undefined).resume();
  }
  let taken = 0;
  const again = (stream: ClientHttp2Stream) => {
    stream.write(messages, () => {
      taken += BATCH;
      again(stream);
    });
  };
  streams.forEach(again);
  return async () => {
    await sleep(10);
    const counted = taken;
    taken = 0;
    return counted;
  };
}

/** More connections than one address may have; counts those that the server ended. */
async function holding(port: number): Promise<Step> {
  const sockets = new Set<Socket>();
  let ended = 0;
  return async () => {
    for (let missing = Math.min(100, HELD_CONNECTIONS - sockets.size); missing > 0; missing--) {
      const socket = connect({ port, host: "127.0.0.1" });
      sockets.add(socket);
      socket
        .on("error", () => undefined)
        .on("close", () => {
          sockets.delete(socket);
          ended += 1;
        });
      socket.resume();
      socket.write(GREETING);
    }
    await sleep(5);
    const counted = ended;
    ended = 0;
    return counted;
  };
}

/** Calls that never go on: with requests that are not whole, or replies that are not taken. */
function stuck(port: number, greeting: Buffer, call: (stream: number) => Buffer): Step {
  return async () => {
    const socket = await opened(port);
    socket?.on("error", () => undefined);
    socket?.resume();
    socket?.write(Buffer.concat([greeting, ...Array.from({ length: STREAMS }, (_, i) => call(1 + 2 * i))]));
    await sleep(5);
    return socket === undefined ? 0 : STREAMS;
  };
}

const unfinished = Buffer.alloc(600);
unfinished.writeUInt32BE(MESSAGE_BYTES, 1);
const unknownField = Buffer.from([0x78, 0]);
/** The most that are taken: each has to be looked at. */
const ofValues = grpcMessage(Buffer.alloc(MESSAGE_VALUES_MAX_COUNT * 2, unknownField));
const ofMessages = () => {
  const holdings = Array.from({ length: MESSAGE_VALUES_MAX_COUNT - 1 }, () => ({}));
  return grpcMessage(
    Buffer.from(toBinary(AnnounceRequestSchema, create(AnnounceRequestSchema, { holdings: { holdings } }))),
  );
};
const ofBytes = () => {
  const bytes = Buffer.alloc(MESSAGE_BYTES);
  // Field 15, length-delimited: unknown to every request, and all of the message.
  bytes.set([0x7a, 0x00 | ((MESSAGE_BYTES - 6) & 127) | 128]);
  let rest = (MESSAGE_BYTES - 6) >> 7;
  for (let at = 2; at < 6; at++) {
    bytes[at] = (rest & 127) | (at < 5 ? 128 : 0);
    rest >>= 7;
  }
  return grpcMessage(bytes);
};

/** What one peer can do to a server, by name. */
const FLOODS: Readonly<Record<string, (port: number) => Step | Promise<Step>>> = {
  connections: (port) => async () => {
    const sockets = await Promise.all(Array.from({ length: 50 }, () => opened(port)));
    for (const socket of sockets) {
      socket?.on("error", () => undefined);
      socket?.end(GREETING);
      socket?.destroy();
    }
    return sockets.length;
  },
  "held-connections": holding,
  garbage: (port) => async () => {
    const socket = await opened(port);
    socket?.on("error", () => undefined);
    socket?.end(randomBytes(2000));
    await sleep(1);
    socket?.destroy();
    return 1;
  },
  calls: (port) => pressing(port, 16, 32, Buffer.alloc(0)),
  "malformed-calls": (port) => pressing(port, 16, 32, Buffer.from([0x07, 0x00, 0xff])),
  "streamed-messages": (port) =>
    streaming(
      port,
      "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
      many(() => grpcMessage(Buffer.from([0x3a, 0]))),
    ),
  "rapid-reset": (port) =>
    onConnections(port, GREETING, (stream) =>
      many((i) => Buffer.concat([headers(stream + 2 * i), cancel(stream + 2 * i)])),
    ),
  "unknown-calls": (port) =>
    onConnections(port, GREETING, (stream) => many((i) => headers(stream + 2 * i, "/no.such/Call"))),
  continuation: (port) =>
    onConnections(port, Buffer.concat([GREETING, frame(FRAME.headers, 0, 1, callHeaders(LIST))]), () =>
      many(() =>
        frame(FRAME.continuation, 0, 1, Buffer.concat([Buffer.from([0, 1, 0x78, 100]), Buffer.alloc(100, 97)])),
      ),
    ),
  settings: (port) => onConnections(port, GREETING, () => many(() => settings([[INITIAL_WINDOW_SIZE, 65_535]]))),
  pings: (port) => onConnections(port, GREETING, () => many(() => frame(FRAME.ping, 0, 0, Buffer.alloc(8)))),
  "empty-data": (port) =>
    onConnections(port, Buffer.concat([GREETING, headers(1)]), () => many(() => frame(FRAME.data, 0, 1))),
  "huge-messages": (port) => sending(port, `${P2P}/PublishMetadata`, ofBytes()),
  "many-values": (port) => sending(port, LIST, ofValues),
  "many-messages": (port) => sending(port, "/weightline.node.v1.NodeService/Announce", ofMessages()),
  "unfinished-requests": (port) =>
    stuck(port, GREETING, (stream) => Buffer.concat([headers(stream), frame(FRAME.data, 0, stream, unfinished)])),
  "untaken-replies": (port) =>
    stuck(port, Buffer.concat([PREFACE, settings([[INITIAL_WINDOW_SIZE, 0]])]), (stream) =>
      Buffer.concat([headers(stream), frame(FRAME.data, END_STREAM, stream, grpcMessage(Buffer.alloc(0)))]),
    ),
};

export const FLOOD_KINDS: readonly string[] = Object.keys(FLOODS);

async function flood(port: number, ms: number, kind: string): Promise<number> {
  const make = FLOODS[kind];
  if (make === undefined) {
    throw new Error(`flood ${kind} is not known; there are ${FLOOD_KINDS.join(", ")}`);
  }
  const step = await make(port);
  const end = performance.now() + ms;
  let count = 0;
  while (performance.now() < end || (count === 0 && performance.now() < end + LATE_MS)) {
    count += await step();
    // Others of this process's sockets get their turn.
    await new Promise((resolve) => setImmediate(resolve));
  }
  return count;
}

if (import.meta.main) {
  const [port = "", ms = "", kind = ""] = process.argv.slice(2);
  process.stdout.write(`flooding ${kind}\n`);
  const count = await flood(Number(port), Number(ms), kind);
  process.stdout.write(`${kind} ${count}\n`);
  process.exit(0);
}
