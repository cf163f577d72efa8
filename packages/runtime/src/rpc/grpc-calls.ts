import { Code } from "@connectrpc/connect";
import type { HeaderList } from "../http2/header-decoder.ts";
import type { Http2Stream, StreamTaker } from "../http2/http2-stream.ts";
import type { Authorize, Caller } from "../security/access.ts";
import type { ConnectionPeer } from "../security/secure-intake.ts";
import type { CallWatch } from "./call-watch.ts";
import type { Connection, ConnectionTable } from "./connection-table.ts";
import { type CallHost, GrpcCall } from "./grpc-call.ts";
import {
  type CallRunner,
  createCallRunner,
  type Handler,
  type HandlerSurroundings,
  messageFault,
  streamsOf,
  turnedAway,
} from "./grpc-handlers.ts";
import { parseTimeout, readRequestHead } from "./grpc-request.ts";
import { httpStatus } from "./grpc-status.ts";
import { brokenRequest } from "./received-message.ts";
import type { ServiceRoute } from "./service-route.ts";

export interface CallsOptions {
  routes: readonly ServiceRoute[];
  table: ConnectionTable;
  watch: CallWatch;
  around: HandlerSurroundings;
  /** Undefined: everybody may call everything. */
  authorize: Authorize | undefined;
}

/** Makes calls of a server's requests, and has them served when their callers are known, their messages here and their turn come. */
export interface GrpcCalls {
  /** Undefined when the request was no call, and has its answer. */
  take(
    connection: Connection,
    peer: ConnectionPeer | undefined,
    stream: Http2Stream,
    headers: HeaderList,
  ): StreamTaker | undefined;
}

interface Served {
  /** Undefined: the service has it, and it is not served here. */
  readonly run: CallRunner | undefined;
  readonly streamsRequests: boolean;
}

const GRPC_CONTENT = /^application\/grpc(?:[+;]|$)/;
const UNSUPPORTED_MEDIA = httpStatus(415);
const METHOD_NOT_ALLOWED = httpStatus(405);
/** Of what a caller made up, in what it is told. */
const SHOWN_PATH_MAX = 200;
const SHOWN_TIMEOUT_MAX = 40;
const PLAIN: ConnectionPeer = { encrypted: false };

function servedBy(routes: readonly ServiceRoute[], around: HandlerSurroundings): Map<string, Served> {
  const served = new Map<string, Served>();
  for (const { service, implementation } of routes) {
    for (const method of service.methods) {
      const handler = (implementation as Record<string, Handler | undefined>)[method.localName];
      served.set(`/${service.typeName}/${method.name}`, {
        run: handler === undefined ? undefined : createCallRunner(method, handler.bind(implementation), around),
        streamsRequests: streamsOf(method).requestStream,
      });
    }
  }
  return served;
}

export function createGrpcCalls({ routes, table, watch, around, authorize }: CallsOptions): GrpcCalls {
  const served = servedBy(routes, around);

  const turnAway = (call: GrpcCall, error: unknown, startedMs = performance.now()) => {
    if (!call.isOver) {
      call.cut(turnedAway(call, error, startedMs, around));
    }
  };
  /** A refusal takes a turn as a call does: who is refused all the time must not keep others waiting. */
  const inTurn = (call: GrpcCall, refuse: () => void) => table.startCall(call.connection, refuse);

  /** Starts what may start: a stream of requests at once, all else when its request is whole. */
  const advance = (call: GrpcCall) => {
    const entry = served.get(call.path);
    if (call.isOver || !call.isAdmitted || call.isStarted || entry === undefined) {
      return;
    }
    const { run } = entry;
    if (run === undefined || !(call.isWhole || call.streamsRequests)) {
      return;
    }
    call.isStarted = true;
    table.startCall(call.connection, () => {
      if (!call.isOver) {
        void run(call);
      }
    });
  };

  const admit = (call: GrpcCall, caller: Caller | undefined) => {
    call.caller = caller;
    call.isAdmitted = true;
    if (served.get(call.path)?.run === undefined) {
      const details = `the server has no method ${call.path.slice(0, SHOWN_PATH_MAX)}`;
      inTurn(call, () => call.cut({ code: Code.Unimplemented, details }));
    }
    advance(call);
  };

  const askWhoCalls = (call: GrpcCall, peer: ConnectionPeer, authorization: readonly string[], check: Authorize) => {
    const startedMs = performance.now();
    const refuse = (error: unknown) => inTurn(call, () => turnAway(call, error, startedMs));
    try {
      const caller = check({ method: call.name, authorization, peer });
      if (caller instanceof Promise) {
        caller.then((known) => admit(call, known), refuse);
      } else {
        admit(call, caller);
      }
    } catch (error) {
      refuse(error);
    }
  };

  const host: CallHost = {
    onPiece: (call, bytes) => watch.received(call, bytes),
    onMore(call) {
      const fault = messageFault(call);
      if (fault !== undefined) {
        turnAway(call, fault);
      }
      advance(call);
    },
    onClose: (call) => watch.ended(call),
  };

  return {
    take(connection, peer, stream, { fields }) {
      const head = readRequestHead(fields);
      if (head.httpMethod !== "POST" || !GRPC_CONTENT.test(head.contentType)) {
        const answer = head.httpMethod === "POST" ? UNSUPPORTED_MEDIA : METHOD_NOT_ALLOWED;
        table.startCall(connection, () => stream.end(answer));
        return undefined;
      }
      const timeoutMs = parseTimeout(head.timeout);
      const call = new GrpcCall({
        host,
        connection,
        stream,
        streamsRequests: served.get(head.path)?.streamsRequests ?? false,
        path: head.path,
        fields,
        encoding: head.encoding,
        deadlineAtMs: performance.now() + (timeoutMs ?? 0),
      });
      stream.taker = call;
      table.callBegan(connection);
      watch.began(call);
      if (timeoutMs === undefined) {
        const fault = brokenRequest(
          `the metadata grpc-timeout is no timeout: ${head.timeout.slice(0, SHOWN_TIMEOUT_MAX)}`,
        );
        inTurn(call, () => turnAway(call, fault));
      } else if (authorize === undefined) {
        admit(call, undefined);
      } else {
        askWhoCalls(call, peer ?? PLAIN, head.authorization, authorize);
      }
      return call;
    },
  };
}
