import { constants, type ServerHttp2Stream } from "node:http2";
import * as grpc from "@grpc/grpc-js";
import type { Connection, ConnectionTable } from "./connection-table.ts";
import { COMPRESSED_MESSAGE_MAX_BYTES, type LimitReason, type OnLimit, type ServerLimits } from "./server-limits.ts";

/** What an interceptor's call has in grpc-js beside its public side: the HTTP/2 stream is nowhere else to be had. */
interface CallInside {
  /** The call within, where another interceptor came first. */
  nextCall?: CallInside;
  stream: ServerHttp2Stream;
  incomingEncoding: string;
  maxReceiveMessageSize: number;
  sendStatus(status: SentStatus): void;
}

type SentStatus = Pick<grpc.StatusObject, "code" | "details"> & { metadata?: grpc.Metadata | null };

/** What grpc-js itself says of requests that are no calls of gRPC, with codes that would blame the server or its age. */
const BROKEN_REQUESTS: readonly RegExp[] = [
  /^Invalid grpc-timeout value/,
  /^Failed to decompress message/,
  /^Received no request message/,
  /^Received a second request message/,
];

function blameCaller(status: SentStatus): SentStatus {
  return !status.metadata && BROKEN_REQUESTS.some((pattern) => pattern.test(status.details))
    ? { ...status, code: grpc.status.INVALID_ARGUMENT }
    : status;
}

/** Watches the calls of a server: the bytes that they keep, and whether their clients go on. */
export interface CallWatch {
  readonly interceptor: grpc.ServerInterceptor;
  close(): void;
}

interface WatchedCall {
  readonly connection: Connection;
  readonly stream: ServerHttp2Stream;
  fail(code: grpc.status, details: string): void;
  /** A limit ended it: it goes when its client has been told. */
  ended: boolean;
  /** Bytes of the request that came so far. */
  requestBytes: number;
  /** Bytes of the reply that the client has not taken, when last looked at. */
  replyBytes: number;
  requestOver: boolean;
  /** The client's own messages may be far apart. */
  readonly streamsRequests: boolean;
  movedAtMs: number;
  /** What its connection had sent when it moved. */
  movedAtBytes: number;
}

/** What a piece of a request costs beside its bytes: many tiny ones are dearer than they look. */
const PIECE_BYTES = 256;
const LOOK_INTERVAL_MS = 250;
/** A connection that sends less while a reply waits does not move: pings are answered by clients that read nothing. */
const MOVED_BYTES = 1024;
const MEBIBYTE = 1024 * 1024;

export function createCallWatch(table: ConnectionTable, limits: ServerLimits, onLimit: OnLimit): CallWatch {
  const calls = new Set<WatchedCall>();
  let bytesInAll = 0;

  const take = (call: WatchedCall, bytes: number) => {
    call.connection.peer.bytes += bytes;
    bytesInAll += bytes;
  };
  const reasonToRefuse = (call: WatchedCall): LimitReason | undefined =>
    call.connection.peer.bytes > limits.bytesPerAddress
      ? "bytes-per-address"
      : bytesInAll > limits.bytesInAll
        ? "bytes"
        : undefined;
  const endCall = (call: WatchedCall, reason: LimitReason, code: grpc.status, details: string) => {
    call.ended = true;
    onLimit(reason, call.connection.peer.address);
    call.fail(code, details);
  };
  const refuse = (call: WatchedCall, reason: LimitReason) => {
    const [whose, limit] =
      reason === "bytes" ? ["all clients", limits.bytesInAll] : ["this address", limits.bytesPerAddress];
    endCall(
      call,
      reason,
      grpc.status.RESOURCE_EXHAUSTED,
      `the requests and untaken replies of ${whose} exceed ${Math.floor(limit / MEBIBYTE)} MiB: wait for calls that run`,
    );
  };
  const onData = (call: WatchedCall, piece: Buffer) => {
    if (call.ended) {
      return;
    }
    call.requestBytes += piece.length + PIECE_BYTES;
    call.movedAtMs = performance.now();
    take(call, piece.length + PIECE_BYTES);
    const reason = reasonToRefuse(call);
    if (reason !== undefined) {
      refuse(call, reason);
    }
  };
  const end = (call: WatchedCall) => {
    if (calls.delete(call)) {
      take(call, -call.requestBytes - call.replyBytes);
      table.callEnded(call.connection);
    }
  };

  const lookAt = (call: WatchedCall, now: number) => {
    const { stream, connection } = call;
    const waiting = stream.writableLength;
    take(call, waiting - call.replyBytes);
    call.replyBytes = waiting;
    const sent = connection.socket.bytesWritten;
    if (waiting > 0 ? sent - call.movedAtBytes > MOVED_BYTES : call.requestOver || call.streamsRequests) {
      call.movedAtMs = now;
      call.movedAtBytes = sent;
    }
    if (!call.ended && now - call.movedAtMs > limits.stalledCallMs) {
      endCall(
        call,
        waiting > 0 ? "stalled-reply" : "stalled-request",
        grpc.status.DEADLINE_EXCEEDED,
        `nothing of the ${waiting > 0 ? "reply was taken" : "request came"} for ${limits.stalledCallMs} ms`,
      );
      // A client that takes nothing would not take the status either.
      stream.close(waiting > 0 ? constants.NGHTTP2_CANCEL : constants.NGHTTP2_NO_ERROR);
    }
  };
  const look = setInterval(() => {
    const now = performance.now();
    for (const call of calls) {
      lookAt(call, now);
    }
  }, LOOK_INTERVAL_MS).unref();

  const watch = (
    inside: CallInside,
    connection: Connection,
    method: grpc.ServerMethodDefinition<unknown, unknown>,
    fail: WatchedCall["fail"],
  ) => {
    const { stream } = inside;
    const call: WatchedCall = {
      connection,
      stream,
      fail,
      ended: false,
      requestBytes: 0,
      replyBytes: 0,
      requestOver: false,
      streamsRequests: method.requestStream,
      movedAtMs: performance.now(),
      movedAtBytes: connection.socket.bytesWritten,
    };
    calls.add(call);
    if (inside.incomingEncoding !== "identity") {
      inside.maxReceiveMessageSize = Math.min(inside.maxReceiveMessageSize, COMPRESSED_MESSAGE_MAX_BYTES);
      call.requestBytes = COMPRESSED_MESSAGE_MAX_BYTES;
      take(call, COMPRESSED_MESSAGE_MAX_BYTES);
    }
    stream.on("data", (piece: Buffer) => onData(call, piece));
    stream.once("end", () => {
      call.requestOver = true;
    });
    // A client that was refused before its request was whole need not send the rest. Who streams requests may get more replies.
    stream.once("finish", () => call.requestOver || call.streamsRequests || stream.close(constants.NGHTTP2_NO_ERROR));
    stream.once("close", () => end(call));
    const reason = reasonToRefuse(call);
    if (reason !== undefined) {
      process.nextTick(() => refuse(call, reason));
    }
  };

  return {
    interceptor(method, intercepting) {
      const { remoteAddress = "", remotePort = 0 } = intercepting.getConnectionInfo();
      let inside = intercepting as unknown as CallInside;
      while (inside.nextCall !== undefined) {
        inside = inside.nextCall;
      }
      const sendStatus = inside.sendStatus.bind(inside);
      inside.sendStatus = (status) => sendStatus(blameCaller(status));
      const connection = table.callBegan(remoteAddress, remotePort, inside.stream.session);
      if (connection !== undefined) {
        watch(inside, connection, method as grpc.ServerMethodDefinition<unknown, unknown>, (code, details) =>
          intercepting.sendStatus({ code, details, metadata: null }),
        );
      }
      return intercepting as grpc.ServerInterceptingCall;
    },
    close: () => clearInterval(look),
  };
}
