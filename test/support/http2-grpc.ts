// gRPC over node:http2 as it is on the wire, for what no client library would send or show.
import { type ClientHttp2Session, type ClientHttp2Stream, connect, type IncomingHttpHeaders } from "node:http2";

/** A call that has ended. */
export interface RawReply {
  /** grpc-status, from trailers or from the headers of a reply without a message; -1 when there was none. */
  code: number;
  message: string;
  /** The messages, undecoded. */
  messages: Buffer[];
}

/** Node's own limit, in MB, would cut streams off that send more than a few. */
const SESSION_MEMORY_MB = 1000;

/** Opens a connection without TLS. The caller closes it. */
export async function openHttp2(port: number): Promise<ClientHttp2Session> {
  const session = connect(`http://127.0.0.1:${port}`, { maxSessionMemory: SESSION_MEMORY_MB });
  session.on("error", () => undefined);
  await new Promise<void>((resolve, reject) => {
    session.once("connect", () => resolve());
    session.once("error", reject);
  });
  return session;
}

/** One message in gRPC's frame. */
export function grpcFrame(message: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

/** Begins a call; `path` like "/package.Service/Method". */
export function openCall(
  session: ClientHttp2Session,
  path: string,
  headers: Record<string, string> = {},
): ClientHttp2Stream {
  const stream = session.request({
    ":method": "POST",
    ":path": path,
    "content-type": "application/grpc",
    te: "trailers",
    ...headers,
  });
  stream.on("error", () => undefined);
  return stream;
}

function messagesOf(body: Buffer): Buffer[] {
  const messages: Buffer[] = [];
  for (let at = 0; at + 5 <= body.length; ) {
    const size = body.readUInt32BE(at + 1);
    messages.push(body.subarray(at + 5, at + 5 + size));
    at += 5 + size;
  }
  return messages;
}

/** One call with a message of any bytes. */
export function rawUnary(
  session: ClientHttp2Session,
  path: string,
  message: Uint8Array,
  headers: Record<string, string> = {},
): Promise<RawReply> {
  return rawCall(session, path, [message], headers);
}

/** One call with any number of messages, whole before its end is awaited. */
export function rawCall(
  session: ClientHttp2Session,
  path: string,
  messages: readonly Uint8Array[],
  headers: Record<string, string> = {},
): Promise<RawReply> {
  const stream = openCall(session, path, headers);
  return new Promise((resolve) => {
    let told: IncomingHttpHeaders = {};
    const pieces: Buffer[] = [];
    stream.on("response", (first) => {
      told = { ...told, ...first };
    });
    stream.on("trailers", (last) => {
      told = { ...told, ...last };
    });
    stream.on("data", (piece: Buffer) => pieces.push(piece));
    stream.once("close", () =>
      resolve({
        code: Number(told["grpc-status"] ?? -1),
        message: decodeURIComponent(String(told["grpc-message"] ?? "")),
        messages: messagesOf(Buffer.concat(pieces)),
      }),
    );
    stream.end(Buffer.concat(messages.map(grpcFrame)));
  });
}
