import { constants, type ServerHttp2Stream } from "node:http2";
import * as grpc from "@grpc/grpc-js";
import { ActiveList, type Listed } from "../active-list.ts";
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
  /** The first one lets the request in. */
  startRead(): void;
}

function innermost(call: CallInside): CallInside {
  return call.nextCall === undefined ? call : innermost(call.nextCall);
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
  /** The handler of a call that streams requests has taken one more of them. `call` is the handler's. */
  taken(call: unknown): void;
  close(): void;
}

interface WatchedCall extends Listed {
  readonly connection: Connection;
  readonly stream: ServerHttp2Stream;
  fail(code: grpc.status, details: string): void;
  /** A limit ended it: it goes when its client has been told. */
  ended: boolean;
  /** Bytes of the request that came so far; of a stream, those since its handler had taken all that was there. */
  requestBytes: number;
  /** Part of them: what a compressed message may become. */
  unpackedBytes: number;
  /** Those of them that came after the last whole message of a stream. */
  unfinishedBytes: number;
  /** Messages of a stream that came and that its handler has not taken. */
  waitingMessages: number;
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

const ignore = () => undefined;

/**
 * Takes what listens off a stream that is closed: node:http2 has its streams in a Map of each connection, whose dead tables
 * keep them (see ActiveList), and with the listeners the whole call.
 */
function letGo(stream: ServerHttp2Stream): void {
  stream.removeAllListeners();
  stream.on("error", ignore);
}

export function createCallWatch(table: ConnectionTable, limits: ServerLimits, onLimit: OnLimit): CallWatch {
  const calls = new ActiveList<WatchedCall>();
  const streams = new WeakMap<CallInside, WatchedCall>();
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
    call.unfinishedBytes += piece.length + PIECE_BYTES;
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
    if (waiting === 0 && call.replyBytes === 0 && call.streamsRequests) {
      // Thousands of streams rest like this.
      call.movedAtMs = now;
      return;
    }
    const sent = connection.socket.bytesWritten;
    const began = call.replyBytes === 0;
    take(call, waiting - call.replyBytes);
    call.replyBytes = waiting;
    if (waiting > 0 ? began || sent - call.movedAtBytes > MOVED_BYTES : call.requestOver || call.streamsRequests) {
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
    calls.forEach((call) => {
      lookAt(call, now);
    });
  }, LOOK_INTERVAL_MS).unref();

  /** Each message of a stream takes a turn as a call does, and its bytes count until the handler has it. */
  const watchMessages = (call: WatchedCall, inside: CallInside, startRead: () => void) => {
    streams.set(inside, call);
    let isFirst = true;
    inside.startRead = () => {
      // It is asked for one when the one before it has come.
      call.waitingMessages += isFirst ? 0 : 1;
      call.unfinishedBytes = 0;
      isFirst = false;
      table.startCall(call.connection, startRead);
    };
  };

  const watch = (
    inside: CallInside,
    connection: Connection,
    method: grpc.ServerMethodDefinition<unknown, unknown>,
    fail: WatchedCall["fail"],
  ) => {
    const { stream } = inside;
    const call: WatchedCall = {
      slot: -1,
      connection,
      stream,
      fail,
      ended: false,
      requestBytes: 0,
      unpackedBytes: 0,
      unfinishedBytes: 0,
      waitingMessages: 0,
      replyBytes: 0,
      requestOver: false,
      streamsRequests: method.requestStream,
      movedAtMs: performance.now(),
      movedAtBytes: connection.socket.bytesWritten,
    };
    calls.add(call);
    const startRead = inside.startRead.bind(inside);
    if (call.streamsRequests) {
      watchMessages(call, inside, startRead);
    } else {
      inside.startRead = () => {
        inside.startRead = startRead;
        table.startCall(connection, startRead);
      };
    }
    if (inside.incomingEncoding !== "identity") {
      inside.maxReceiveMessageSize = Math.min(inside.maxReceiveMessageSize, COMPRESSED_MESSAGE_MAX_BYTES);
      call.unpackedBytes = COMPRESSED_MESSAGE_MAX_BYTES;
      call.requestBytes = call.unpackedBytes;
      take(call, call.unpackedBytes);
    }
    stream.on("data", (piece: Buffer) => onData(call, piece));
    stream.once("end", () => {
      call.requestOver = true;
    });
    // A client that was refused before its request was whole need not send the rest. Who streams requests may get more replies.
    stream.once("finish", () => call.requestOver || call.streamsRequests || stream.close(constants.NGHTTP2_NO_ERROR));
    stream.once("close", () => {
      end(call);
      letGo(stream);
    });
    const reason = reasonToRefuse(call);
    if (reason !== undefined) {
      process.nextTick(() => refuse(call, reason));
    }
  };

  return {
    interceptor(method, intercepting) {
      const inside = innermost(intercepting as unknown as CallInside);
      const sendStatus = inside.sendStatus.bind(inside);
      inside.sendStatus = (status) => sendStatus(blameCaller(status));
      const connection = table.callBegan(intercepting.getConnectionInfo(), inside.stream.session);
      if (connection !== undefined) {
        watch(inside, connection, method as grpc.ServerMethodDefinition<unknown, unknown>, (code, details) =>
          intercepting.sendStatus({ code, details, metadata: null }),
        );
      }
      return intercepting as grpc.ServerInterceptingCall;
    },
    taken(handled) {
      const call = streams.get(innermost((handled as { call: CallInside }).call));
      if (call !== undefined) {
        call.waitingMessages -= 1;
        if (call.waitingMessages <= 0 && calls.has(call)) {
          const kept = call.unpackedBytes + call.unfinishedBytes;
          take(call, kept - call.requestBytes);
          call.requestBytes = kept;
        }
      }
    },
    close: () => clearInterval(look),
  };
}
