import type { EventEmitter } from "node:events";
import { create, type DescMessage, type DescMethod, type MessageShape } from "@bufbuild/protobuf";
import {
  Code,
  type ContextValues,
  createContextValues,
  createHandlerContext,
  type HandlerContext,
} from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import type { ActiveList, Listed } from "../active-list.ts";
import { CALLER } from "../security/access.ts";
import { callerOf } from "./call-authorization.ts";
import { CallEnd } from "./call-end.ts";
import { type CallFailure, failCall, newRequestId } from "./call-failure.ts";
import { toHeaders } from "./grpc-metadata.ts";
import { CALL_OVER, LazyContext } from "./lazy-context.ts";
import { ERROR_METADATA, encodeDetail, REQUEST_ID_METADATA, statusMessage } from "./rpc-error.ts";
import {
  decoded,
  type ReplyStream,
  type RequestStream,
  requestsOf,
  type StreamSides,
  sendAll,
} from "./stream-messages.ts";
import { EncodedMessage } from "./wire-forms.ts";

/** A handler in Connect's form, its kind known only at run time. */
export type Handler = (request: unknown, context: HandlerContext) => unknown;

/** A call that has no answer yet. */
interface RunningCall extends Listed {
  /** Ends it with a reason, whatever its handler does. */
  end(reason: unknown): void;
}

export type RunningCalls = ActiveList<RunningCall>;

/** What all calls of a server share. */
export interface HandlerSurroundings {
  /** Aborted when the server stops; its reason is what running streams end with. Calls with one answer may finish. */
  shutdown: AbortSignal;
  /** Aborted when their time is over too; its reason is what they end with, whatever their handlers do. */
  cut: AbortSignal;
  /** Calls with one answer that have none yet. */
  running: RunningCalls;
  /** Calls with a stream of requests or replies; they end with the reason of `shutdown`. */
  streaming: Set<CallEnd>;
  /** Told when a handler takes a message of a stream. */
  onTaken: (call: unknown) => void;
  /** Told of every finished call. */
  onCall?: (service: string, method: string, code: string, seconds: number) => void;
  /** Told of every call that failed. */
  onFailure?: (failure: CallFailure) => void;
  /** True: every call that gets here has a caller, see {@link CALLER}. */
  secured?: boolean;
}

type Message = MessageShape<DescMessage>;
type Status = Pick<grpc.StatusObject, "code" | "details" | "metadata">;

/** What all kinds of calls have. */
interface Call extends EventEmitter {
  readonly metadata: grpc.Metadata;
  getPeer(): string;
  getDeadline(): grpc.Deadline;
}

function valuesOf(call: Call, { secured }: HandlerSurroundings): ContextValues {
  const values = createContextValues();
  return secured === true ? values.set(CALLER, callerOf(call.metadata)) : values;
}

function contextOf(method: DescMethod, call: Call, { shutdown, cut }: HandlerSurroundings, values: ContextValues) {
  const cancelled = new AbortController();
  const deadline = call.getDeadline();
  const deadlineMs = deadline instanceof Date ? deadline.getTime() : deadline;
  const context = createHandlerContext({
    service: method.parent,
    method,
    protocolName: "grpc",
    requestMethod: "POST",
    url: `grpc://${call.getPeer()}/${method.parent.typeName}/${method.name}`,
    requestHeader: toHeaders(call.metadata),
    requestSignal: cancelled.signal,
    // A stream could go on for ever, and is told to end; what has one answer may still give it.
    shutdownSignal: method.methodKind === "unary" ? cut : shutdown,
    contextValues: values,
    ...(Number.isFinite(deadlineMs) ? { timeoutMs: Math.max(0, deadlineMs - Date.now()) } : {}),
  });
  // grpc-js says so of every call, when it has ended too.
  call.on("cancelled", () => context.signal.aborted || cancelled.abort());
  return context;
}

/** The status of a failed call, told to `onFailure`; `name` like "package.Service/Method". */
function toStatus(name: string, error: unknown, onFailure: HandlerSurroundings["onFailure"]): Status {
  const requestId = newRequestId();
  const connectError = failCall(name, error, requestId, onFailure);
  const metadata = new grpc.Metadata();
  metadata.set(REQUEST_ID_METADATA, requestId);
  const detail = encodeDetail(connectError);
  if (detail !== undefined) {
    metadata.set(ERROR_METADATA, Buffer.from(detail));
  }
  return { code: connectError.code as number as grpc.status, details: statusMessage(connectError), metadata };
}

/** "resource_exhausted", as metrics name it. */
function codeName(code: number): string {
  const name = code === 0 ? "ok" : (Code[code] ?? String(code));
  return name.replace(/[A-Z]/g, (letter, at) => (at > 0 ? "_" : "") + letter.toLowerCase());
}

/** Runs one call, gives its failure to `fail`, and tells the hooks how it ended. */
async function observed(
  method: DescMethod,
  call: Call,
  surroundings: HandlerSurroundings,
  body: (context: HandlerContext) => Promise<void>,
  fail: (status: Status) => void,
): Promise<void> {
  const start = performance.now();
  const context = new LazyContext(
    () => valuesOf(call, surroundings),
    (values) => contextOf(method, call, surroundings, values),
  );
  let code = 0;
  try {
    await body(context);
  } catch (error) {
    const status = toStatus(`${method.parent.typeName}/${method.name}`, error, surroundings.onFailure);
    code = status.code;
    fail(status);
  } finally {
    context.end();
  }
  surroundings.onCall?.(method.parent.typeName, method.name, codeName(code), (performance.now() - start) / 1000);
}

/** The status of a call that was turned away before its handler: `path` is that of HTTP. It is told to the hooks. */
export function turnedAway(path: string, error: unknown, startedMs: number, surroundings: HandlerSurroundings): Status {
  const status = toStatus(path.slice(1), error, surroundings.onFailure);
  const [service = "", method = ""] = path.slice(1).split("/");
  surroundings.onCall?.(service, method, codeName(status.code), (performance.now() - startedMs) / 1000);
  return status;
}

/** The answer, or a rejection when the server's time is over: then it does not wait for handlers. */
function uncut<T>(answer: Promise<T> | T, running: RunningCalls): Promise<T> | T {
  if (!(answer instanceof Promise)) {
    return answer;
  }
  return new Promise<T>((resolve, reject) => {
    const call: RunningCall = { slot: -1, end: reject };
    running.add(call);
    answer.then(
      (value) => {
        running.delete(call);
        resolve(value);
      },
      (error) => {
        running.delete(call);
        reject(error);
      },
    );
  });
}

/** Runs what streams until it ends or its call does, with what tells of that. */
async function streamed(
  call: ReplyStream | RequestStream,
  { streaming, shutdown, onTaken }: HandlerSurroundings,
  body: (sides: StreamSides) => Promise<void>,
): Promise<void> {
  const end = new CallEnd(call);
  if (shutdown.aborted) {
    // It came before the stop and waited, for its turn or for who it is from.
    end.end(shutdown.reason);
  }
  streaming.add(end);
  try {
    await body({ end, onTaken });
  } finally {
    streaming.delete(end);
    end.end(CALL_OVER);
  }
}

/** The handler as grpc-js takes it, for all four kinds of methods. */
export function toGrpcHandler(
  method: DescMethod,
  handler: Handler,
  surroundings: HandlerSurroundings,
): grpc.UntypedHandleCall {
  const { requestStream, responseStream } = streamsOf(method);
  const requestOf = (call: ReplyStream, sides: StreamSides) =>
    requestStream
      ? requestsOf(method, call as grpc.ServerDuplexStream<unknown, unknown>, sides)
      : decoded(method, (call as grpc.ServerWritableStream<unknown, unknown>).request);
  if (responseStream) {
    return (call: ReplyStream) => {
      const body = (context: HandlerContext) =>
        streamed(call, surroundings, (sides) => {
          // A waiting client must learn at once that the call is there.
          call.sendMetadata(new grpc.Metadata());
          return sendAll(method, call, handler(requestOf(call, sides), context), sides.end);
        });
      void observed(method, call, surroundings, body, (status) => call.emit("error", status));
    };
  }
  return (call: grpc.ServerUnaryCall<unknown, unknown>, callback: grpc.sendUnaryData<unknown>) => {
    const answer = async (request: unknown, context: HandlerContext) => {
      const reply = await uncut(handler(request, context), surroundings.running);
      callback(null, reply instanceof EncodedMessage ? reply : create(method.output, reply as Message));
    };
    const body = async (context: HandlerContext) => {
      if (requestStream) {
        const stream = call as unknown as RequestStream;
        return streamed(stream, surroundings, (sides) => answer(requestsOf(method, stream, sides), context));
      }
      return answer(decoded(method, call.request), context);
    };
    void observed(method, call, surroundings, body, (status) => callback(status));
  };
}

/** Which sides of a method are streams. */
export function streamsOf(method: DescMethod): { requestStream: boolean; responseStream: boolean } {
  const kind = method.methodKind;
  return {
    requestStream: kind === "client_streaming" || kind === "bidi_streaming",
    responseStream: kind === "server_streaming" || kind === "bidi_streaming",
  };
}
