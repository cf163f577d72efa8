// A peer that speaks HTTP/2 as it likes: whatever frames, windows and silences a test wants.
import { once } from "node:events";
import type { Socket } from "node:net";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
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
  INITIAL_WINDOW_SIZE,
  PREFACE,
  settings,
} from "./http2-frames.ts";
import { until } from "./processes.ts";

/** Codes of RST_STREAM and GOAWAY. */
export const H2 = { noError: 0, refusedStream: 7, cancel: 8, enhanceYourCalm: 11 } as const;

/** The server writes it plain; then come its value's length and the value. */
const GRPC_STATUS = Buffer.from("grpc-status");

function statusIn(block: Buffer): number | undefined {
  const at = block.indexOf(GRPC_STATUS);
  if (at < 0) {
    return undefined;
  }
  const value = at + GRPC_STATUS.length + 1;
  return Number(block.toString("latin1", value, value + (block[value - 1] ?? 0)));
}

export interface HostilePeer {
  readonly socket: Socket;
  /** All that came, in order. */
  readonly frames: Frame[];
  /** True once the other side has closed or reset. */
  closed(): boolean;
  send(...parts: Buffer[]): void;
  /** Begins a call: headers alone. Gives the stream's number. */
  begin(path: string, more?: Readonly<Record<string, string>>): number;
  /** A call with its whole request. */
  call(path: string, payload: Buffer): number;
  /** Waits for a frame of a stream. */
  got(type: number, stream: number): Promise<Frame>;
  /** Waits for the end of a stream: its gRPC status, or the code of its reset. */
  end(stream: number): Promise<{ status: number | undefined; reset: number | undefined }>;
  ended(): Promise<void>;
}

export interface HostileOptions {
  localAddress?: string;
  /** Bytes that the server may send on a stream; HTTP/2's own by default. */
  windowBytes?: number;
  /** Says nothing at all until told to. */
  silent?: boolean;
  /** Does not answer pings. */
  ignorePings?: boolean;
  /** Speaks over TLS; it is silent after the handshake. */
  tls?: ConnectionOptions | undefined;
}

async function secure(socket: Socket, tls: ConnectionOptions): Promise<Socket> {
  const secured = connectTls({ ...tls, socket, ALPNProtocols: ["h2"] });
  await once(secured, "secureConnect");
  return secured;
}

export async function openHostilePeer(port: number, options: HostileOptions = {}): Promise<HostilePeer> {
  const plain = await dial(port, options.localAddress);
  const socket = options.tls === undefined ? plain : await secure(plain, options.tls);
  const frames: Frame[] = [];
  let closed = false;
  let next = 1;
  socket.on("error", () => undefined);
  socket.on("close", () => {
    closed = true;
  });
  socket.on(
    "data",
    frameReader((came) => {
      const kept = { ...came, payload: Buffer.from(came.payload) };
      frames.push(kept);
      if (kept.type === FRAME.settings && (kept.flags & ACK) === 0 && options.silent !== true) {
        socket.write(frame(FRAME.settings, ACK, 0));
      }
      if (kept.type === FRAME.ping && (kept.flags & ACK) === 0 && options.ignorePings !== true) {
        socket.write(frame(FRAME.ping, ACK, 0, kept.payload));
      }
    }),
  );
  if (options.silent !== true) {
    socket.write(
      Buffer.concat([
        PREFACE,
        // Header blocks without a table, so that their texts can be found.
        settings([
          [1, 0],
          ...(options.windowBytes === undefined ? [] : [[INITIAL_WINDOW_SIZE, options.windowBytes] as const]),
        ]),
      ]),
    );
  }
  const take = (): number => {
    const stream = next;
    next += 2;
    return stream;
  };
  const found = (test: (came: Frame) => boolean) => frames.find(test);
  const peer: HostilePeer = {
    socket,
    frames,
    closed: () => closed,
    send: (...parts) => void socket.write(Buffer.concat(parts)),
    begin(path, more) {
      const stream = take();
      socket.write(frame(FRAME.headers, END_HEADERS, stream, callHeaders(path, more)));
      return stream;
    },
    call(path, payload) {
      const stream = take();
      socket.write(
        Buffer.concat([
          frame(FRAME.headers, END_HEADERS, stream, callHeaders(path)),
          frame(FRAME.data, END_STREAM, stream, payload),
        ]),
      );
      return stream;
    },
    async got(type, stream) {
      const wanted = (came: Frame) => came.type === type && came.stream === stream;
      await until(`a frame of type ${type} on stream ${stream}`, () => closed || found(wanted) !== undefined);
      const came = found(wanted);
      if (came === undefined) {
        throw new Error(`the connection ended before a frame of type ${type} on stream ${stream}`);
      }
      return came;
    },
    async end(stream) {
      const isEnd = (came: Frame) =>
        came.stream === stream &&
        (came.type === FRAME.reset || (came.type === FRAME.headers && (came.flags & END_STREAM) !== 0));
      await until(`the end of stream ${stream}`, () => closed || found(isEnd) !== undefined);
      const reset = found((came) => came.stream === stream && came.type === FRAME.reset);
      const blocks = frames.filter((came) => came.stream === stream && came.type === FRAME.headers);
      return {
        status: statusIn(Buffer.concat(blocks.map(({ payload }) => payload))),
        reset: reset?.payload.readUInt32BE(),
      };
    },
    ended: () => until("the end of the connection", () => closed),
  };
  return peer;
}
