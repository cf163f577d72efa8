// gRPC by hand over a plain socket: requests are bytes that were made before, replies are not decoded. A load generator must cost
// less than the server that it measures, and a hostile client does what no library does.
import { connect, type Socket } from "node:net";
import { type ConnectionOptions, connect as connectTls } from "node:tls";

/** Types of HTTP/2 frames. */
export const FRAME = {
  data: 0,
  headers: 1,
  reset: 3,
  settings: 4,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;
export const END_STREAM = 1;
export const END_HEADERS = 4;
export const ACK = 1;
export const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
const FRAME_HEAD_BYTES = 9;
const GRPC_HEAD_BYTES = 5;
const WINDOW_MAX = 2 ** 31 - 1;
/** HTTP/2's own: what may be sent before the first WINDOW_UPDATE. */
const FIRST_WINDOW_BYTES = 65_535;
const FRAME_MAX_BYTES = 16_384;
/** What the server allows on a connection; more wait here. */
const CALLS_AT_ONCE = 32;
const HEADER_TABLE_SIZE = 1;
export const INITIAL_WINDOW_SIZE = 4;

/** One HTTP/2 frame. */
export function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(FRAME_HEAD_BYTES);
  head.writeUIntBE(payload.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A SETTINGS frame of identifiers and values. */
export function settings(values: ReadonlyArray<readonly [identifier: number, value: number]>): Buffer {
  const payload = Buffer.alloc(values.length * 6);
  for (const [i, [identifier, value]] of values.entries()) {
    payload.writeUInt16BE(identifier, i * 6);
    payload.writeUInt32BE(value, i * 6 + 2);
  }
  return frame(FRAME.settings, 0, 0, payload);
}

export function windowUpdate(stream: number, bytes: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(bytes);
  return frame(FRAME.windowUpdate, 0, stream, payload);
}

/** A literal of HPACK, never Huffman-coded, never kept in a table. */
function literal(text: string): Buffer {
  const bytes = Buffer.from(text, "latin1");
  if (bytes.length < 127) {
    return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  }
  const length = [0x7f];
  let rest = bytes.length - 127;
  for (; rest >= 128; rest >>= 7) {
    length.push((rest & 0x7f) | 0x80);
  }
  return Buffer.concat([Buffer.from([...length, rest]), bytes]);
}

/** The header block of a gRPC call. */
export function callHeaders(path: string, more: Readonly<Record<string, string>> = {}): Buffer {
  const all = { ":authority": "localhost", "content-type": "application/grpc", te: "trailers", ...more };
  return Buffer.concat([
    // POST and http of the static table.
    Buffer.from([0x83, 0x86, 0x04]),
    literal(path),
    ...Object.entries(all).flatMap(([name, value]) => [Buffer.from([0]), literal(name), literal(value)]),
  ]);
}

/** A message with gRPC's five bytes before it. */
export function grpcMessage(bytes: Uint8Array): Buffer {
  const head = Buffer.alloc(GRPC_HEAD_BYTES);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

/** A whole call as bytes; the stream's number is put in when it is sent. At most a frame's payload. */
export interface PreparedCall {
  bytes: Buffer;
  /** Where the second frame begins. */
  dataAt: number;
  payloadBytes: number;
}

export function prepareCall(path: string, message: Uint8Array): PreparedCall {
  const payload = grpcMessage(message);
  if (payload.length > FRAME_MAX_BYTES) {
    throw new Error(`a prepared call has at most ${FRAME_MAX_BYTES} bytes, not ${payload.length}`);
  }
  const head = frame(FRAME.headers, END_HEADERS, 0, callHeaders(path));
  const bytes = Buffer.concat([head, frame(FRAME.data, END_STREAM, 0, payload)]);
  return { bytes, dataAt: head.length, payloadBytes: payload.length };
}

/** A frame that came. */
export interface Frame {
  type: number;
  flags: number;
  stream: number;
  payload: Buffer;
}

/** Cuts what comes into frames; the payloads are parts of the pieces given. */
export function frameReader(take: (frame: Frame) => void): (piece: Buffer) => void {
  let rest: Buffer = Buffer.alloc(0);
  return (piece) => {
    const bytes = rest.length === 0 ? piece : Buffer.concat([rest, piece]);
    let at = 0;
    while (at + FRAME_HEAD_BYTES <= bytes.length) {
      const end = at + FRAME_HEAD_BYTES + bytes.readUIntBE(at, 3);
      if (end > bytes.length) {
        break;
      }
      take({
        type: bytes[at + 3] ?? 0,
        flags: bytes[at + 4] ?? 0,
        stream: bytes.readUInt32BE(at + 5) & WINDOW_MAX,
        payload: bytes.subarray(at + FRAME_HEAD_BYTES, end),
      });
      at = end;
    }
    rest = at === bytes.length ? Buffer.alloc(0) : bytes.subarray(at);
  };
}

/** How a call ended. */
export interface RawReply {
  /** A message came before the trailers: whoever fails a unary call sends none. */
  answered: boolean;
  /** Bytes of the reply's message; empty unless they were asked for. */
  message: Buffer;
}

interface RunningCall {
  keep: boolean;
  pieces: Buffer[];
  dataBytes: number;
  done(reply: RawReply): void;
}

/** A call that streams both ways; it is there from its first message on, and over with its connection. */
export interface RawStream {
  /** Sends a message of at most a frame; `done` is told of its reply, which comes after those of earlier messages. */
  send(message: Uint8Array, done: (reply: RawReply) => void): void;
}

/** One connection that makes prepared calls. */
export interface RawConnection {
  /** Sends a call; `done` is told once how it ended. Calls of one turn of the event loop leave in one write. */
  send(call: PreparedCall, keep: boolean, done: (reply: RawReply) => void): void;
  /** A stream to the path; with it there is one call less to be made at once. */
  stream(path: string): RawStream;
  /** Calls that run. */
  running(): number;
  close(): void;
}

/** A socket to 127.0.0.1; `localAddress` makes it a peer of its own. */
export async function dial(port: number, localAddress = "127.0.0.1"): Promise<Socket> {
  const socket = connect({ port, host: "127.0.0.1", localAddress, noDelay: true });
  await new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", reject);
  });
  return socket;
}

/** Opens a connection; over TLS where there are options for it. */
export async function openRawConnection(
  port: number,
  localAddress?: string,
  tls?: ConnectionOptions,
): Promise<RawConnection> {
  const plain = await dial(port, localAddress);
  const socket = tls === undefined ? plain : connectTls({ ...tls, socket: plain, ALPNProtocols: ["h2"] });
  socket.write(
    Buffer.concat([
      PREFACE,
      // Without a table in the server's encoder, header blocks stay small to read over.
      settings([
        [HEADER_TABLE_SIZE, 0],
        [INITIAL_WINDOW_SIZE, WINDOW_MAX],
      ]),
      windowUpdate(0, WINDOW_MAX - FIRST_WINDOW_BYTES),
    ]),
  );
  return run(socket);
}

interface RunningStream {
  /** Of messages without a reply, in their order. */
  waiting: Array<(reply: RawReply) => void>;
  /** Of a reply that has not come whole. */
  rest: Buffer;
}

/** Hands the whole replies to those who wait for them; gives what is left. */
function takeReplies(bytes: Buffer, waiting: RunningStream["waiting"]): Buffer {
  let at = 0;
  while (at + GRPC_HEAD_BYTES <= bytes.length) {
    const end = at + GRPC_HEAD_BYTES + bytes.readUInt32BE(at + 1);
    if (end > bytes.length) {
      break;
    }
    waiting.shift()?.({ answered: true, message: bytes.subarray(at + GRPC_HEAD_BYTES, end) });
    at = end;
  }
  return bytes.subarray(at);
}

function run(socket: Socket): RawConnection {
  const calls = new Map<number, RunningCall>();
  const streams = new Map<number, RunningStream>();
  const waiting: Array<() => void> = [];
  let nextStream = 1;
  let window = FIRST_WINDOW_BYTES;
  let consumed = 0;
  let unsent: Buffer[] = [];

  const mayNot = () => !socket.destroyed && (window < FRAME_MAX_BYTES || calls.size + streams.size >= CALLS_AT_ONCE);
  const letGo = () => {
    while (waiting.length > 0 && !mayNot()) {
      waiting.shift()?.();
    }
  };
  const write = (bytes: Buffer) => {
    if (unsent.length === 0) {
      setImmediate(() => {
        socket.write(Buffer.concat(unsent));
        unsent = [];
      });
    }
    unsent.push(bytes);
  };
  const finish = (stream: number, failed: boolean) => {
    const open = streams.get(stream);
    streams.delete(stream);
    for (const done of open?.waiting ?? []) {
      done({ answered: false, message: Buffer.alloc(0) });
    }
    const call = calls.get(stream);
    if (call === undefined) {
      return;
    }
    calls.delete(stream);
    letGo();
    const answered = !failed && call.dataBytes >= GRPC_HEAD_BYTES;
    call.done({ answered, message: Buffer.concat(call.pieces).subarray(GRPC_HEAD_BYTES) });
  };
  const takeData = (stream: number, payload: Buffer) => {
    consumed += payload.length;
    if (consumed > WINDOW_MAX / 2) {
      write(windowUpdate(0, consumed));
      consumed = 0;
    }
    const open = streams.get(stream);
    if (open !== undefined) {
      open.rest = takeReplies(Buffer.concat([open.rest, payload]), open.waiting);
    }
    const call = calls.get(stream);
    if (call !== undefined) {
      call.dataBytes += payload.length;
      if (call.keep) {
        call.pieces.push(Buffer.from(payload));
      }
    }
  };
  const take = ({ type, flags, stream, payload }: Frame) => {
    if (type === FRAME.data) {
      takeData(stream, payload);
    } else if (type === FRAME.reset) {
      finish(stream, true);
    } else if (type === FRAME.settings && (flags & ACK) === 0) {
      write(frame(FRAME.settings, ACK, 0));
    } else if (type === FRAME.ping && (flags & ACK) === 0) {
      write(frame(FRAME.ping, ACK, 0, Buffer.from(payload)));
    } else if (type === FRAME.windowUpdate && stream === 0) {
      window += payload.readUInt32BE();
      letGo();
    }
    if ((type === FRAME.data || type === FRAME.headers) && (flags & END_STREAM) !== 0) {
      finish(stream, false);
    }
  };
  socket.on("data", frameReader(take));
  socket.on("error", () => undefined);
  socket.on("close", () => {
    for (const stream of [...calls.keys(), ...streams.keys()]) {
      finish(stream, true);
    }
    letGo();
  });

  const send: RawConnection["send"] = (call, keep, done) => {
    if (mayNot()) {
      waiting.push(() => send(call, keep, done));
      return;
    }
    if (socket.destroyed) {
      done({ answered: false, message: Buffer.alloc(0) });
      return;
    }
    window -= call.payloadBytes;
    const stream = nextStream;
    nextStream += 2;
    const bytes = Buffer.from(call.bytes);
    bytes.writeUInt32BE(stream, 5);
    bytes.writeUInt32BE(stream, call.dataAt + 5);
    calls.set(stream, { keep, pieces: [], dataBytes: 0, done });
    write(bytes);
  };
  const stream = (path: string): RawStream => {
    const number = nextStream;
    nextStream += 2;
    const open: RunningStream = { waiting: [], rest: Buffer.alloc(0) };
    streams.set(number, open);
    write(frame(FRAME.headers, END_HEADERS, number, callHeaders(path)));
    return {
      send(message, done) {
        const payload = grpcMessage(message);
        if (!streams.has(number) || window < payload.length) {
          done({ answered: false, message: Buffer.alloc(0) });
          return;
        }
        window -= payload.length;
        open.waiting.push(done);
        write(frame(FRAME.data, 0, number, payload));
      },
    };
  };
  return { send, stream, running: () => calls.size, close: () => socket.destroy() };
}
