import { Code } from "@connectrpc/connect";
import { ActiveList } from "../active-list.ts";
import { REASON } from "../http2/frames.ts";
import type { ConnectionTable } from "./connection-table.ts";
import type { GrpcCall } from "./grpc-call.ts";
import { COMPRESSED_MESSAGE_MAX_BYTES, type LimitReason, type OnLimit, type ServerLimits } from "./server-limits.ts";

/** Watches the calls of a server: the bytes that they keep, and whether their clients go on. */
export interface CallWatch {
  began(call: GrpcCall): void;
  /** So many bytes of its request came. */
  received(call: GrpcCall, bytes: number): void;
  /** Its handler has taken a message of a stream. */
  taken(call: GrpcCall): void;
  ended(call: GrpcCall): void;
  close(): void;
}

/** What a piece of a request costs beside its bytes: many tiny ones are dearer than they look. */
const PIECE_BYTES = 256;
const LOOK_INTERVAL_MS = 250;
/** A connection that sends less while a reply waits does not move: pings are answered by clients that read nothing. */
const MOVED_BYTES = 1024;
const MEBIBYTE = 1024 * 1024;

/** Of names and values, which are kept for as long as the call. */
function headerBytesOf({ fields }: GrpcCall): number {
  let bytes = 0;
  for (const text of fields) {
    bytes += text.length;
  }
  return bytes;
}

export function createCallWatch(table: ConnectionTable, limits: ServerLimits, onLimit: OnLimit): CallWatch {
  const calls = new ActiveList<GrpcCall>();
  let bytesInAll = 0;

  const take = (call: GrpcCall, bytes: number) => {
    call.connection.peer.bytes += bytes;
    bytesInAll += bytes;
  };
  const reasonToRefuse = (call: GrpcCall): LimitReason | undefined =>
    call.connection.peer.bytes > limits.bytesPerAddress
      ? "bytes-per-address"
      : bytesInAll > limits.bytesInAll
        ? "bytes"
        : undefined;
  const endCall = (call: GrpcCall, reason: LimitReason, code: Code, details: string) => {
    onLimit(reason, call.connection.peer.address);
    call.cut({ code, details });
  };
  const refuseAbove = (call: GrpcCall) => {
    const reason = reasonToRefuse(call);
    if (reason === undefined || call.isOver) {
      return;
    }
    const [whose, limit] =
      reason === "bytes" ? ["all clients", limits.bytesInAll] : ["this address", limits.bytesPerAddress];
    endCall(
      call,
      reason,
      Code.ResourceExhausted,
      `the requests and untaken replies of ${whose} exceed ${Math.floor(limit / MEBIBYTE)} MiB: wait for calls that run`,
    );
  };
  const lookAt = (call: GrpcCall, now: number) => {
    const { stream, connection, account } = call;
    const waiting = stream.unsentBytes;
    if (!call.isOver && now >= call.deadlineAtMs) {
      call.cut({ code: Code.DeadlineExceeded, details: "the call's deadline is over" });
    }
    if (!calls.has(call)) {
      return;
    }
    if (waiting === 0 && account.replyBytes === 0 && call.streamsRequests) {
      // Thousands of streams rest like this.
      account.movedAtMs = now;
      return;
    }
    const sent = connection.socket.bytesWritten;
    const began = account.replyBytes === 0;
    take(call, waiting - account.replyBytes);
    account.replyBytes = waiting;
    if (waiting > 0 ? began || sent - account.movedAtBytes > MOVED_BYTES : call.isWhole || call.streamsRequests) {
      account.movedAtMs = now;
      account.movedAtBytes = sent;
    }
    if (now - account.movedAtMs > limits.stalledCallMs) {
      endCall(
        call,
        waiting > 0 ? "stalled-reply" : "stalled-request",
        Code.DeadlineExceeded,
        `nothing of the ${waiting > 0 ? "reply was taken" : "request came"} for ${limits.stalledCallMs} ms`,
      );
      // A client that takes nothing would not take the status either.
      stream.reset(waiting > 0 ? REASON.cancel : REASON.noError);
    }
  };
  const look = setInterval(() => {
    const now = performance.now();
    calls.forEach((call) => {
      lookAt(call, now);
    });
  }, LOOK_INTERVAL_MS).unref();

  return {
    began(call) {
      const { account } = call;
      account.movedAtMs = performance.now();
      account.movedAtBytes = call.connection.socket.bytesWritten;
      calls.add(call);
      account.unpackedBytes = call.encoding === "identity" ? 0 : COMPRESSED_MESSAGE_MAX_BYTES;
      account.requestBytes = headerBytesOf(call) + account.unpackedBytes;
      take(call, account.requestBytes);
      refuseAbove(call);
    },
    received(call, bytes) {
      if (calls.has(call) && !call.isOver) {
        call.account.requestBytes += bytes + PIECE_BYTES;
        call.account.movedAtMs = performance.now();
        take(call, bytes + PIECE_BYTES);
        refuseAbove(call);
      }
    },
    taken(call) {
      if (calls.has(call)) {
        const kept = headerBytesOf(call) + call.account.unpackedBytes + call.waitingBytes;
        take(call, kept - call.account.requestBytes);
        call.account.requestBytes = kept;
      }
    },
    ended(call) {
      if (calls.delete(call)) {
        take(call, -call.account.requestBytes - call.account.replyBytes);
        table.callEnded(call.connection);
      }
    },
    close: () => clearInterval(look),
  };
}
