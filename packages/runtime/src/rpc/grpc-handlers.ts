import { type EventEmitter, on } from "node:events";
import { setImmediate as nextTurn } from "node:timers/promises";
import { create, type DescMessage, type DescMethod, type MessageShape } from "@bufbuild/protobuf";
import { Code, createContextValues, createHandlerContext, type HandlerContext } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { WeightlineError } from "../error.ts";
import { CALLER } from "../security/access.ts";
import { callerOf } from "./call-authorization.ts";
import { type CallFailure, failCall, newRequestId } from "./call-failure.ts";
import { toHeaders } from "./grpc-metadata.ts";
import { LazyContext } from "./lazy-context.ts";
import { ERROR_METADATA, encodeDetail, malformedRequest, REQUEST_ID_METADATA, statusMessage } from "./rpc-error.ts";
import { EncodedMessage } from "./wire-forms.ts";

/** A handler in Connect's form, its kind known only at run time. */
export type Handler = (request: unknown, context: HandlerContext) => unknown;

/** Ends a call with a reason, whatever its handler does. */
export type RunningCalls = Set<(reason: unknown) => void>;

/** What all calls of a server share. */
export interface HandlerSurroundings {
  /** Aborted when the server stops; its reason is what running streams end with. Calls with one answer may finish. */
  shutdown: AbortSignal;
  /** Aborted when their time is over too; its reason is what they end with, whatever their handlers do. */
  cut: AbortSignal;
  /** Calls with one answer that have none yet. */
  running: RunningCalls;
  /** Told of every finished call. */
  onCall?: (service: string, method: string, code: string, seconds: number) => void;
  /** Told of every call that failed. */
  onFailure?: (failure: CallFailure) => void;
  /** True: every call that gets here has a caller, see {@link CALLER}. */
  secured?: boolean;
}

type Message = MessageShape<DescMessage>;
type RequestStream = grpc.ServerReadableStream<unknown, unknown> | grpc.ServerDuplexStream<unknown, unknown>;
type ReplyStream = grpc.ServerWritableStream<unknown, unknown> | grpc.ServerDuplexStream<unknown, unknown>;
type Status = Pick<grpc.StatusObject, "code" | "details" | "metadata">;

/** What all kinds of calls have. */
interface Call extends EventEmitter {
  readonly metadata: grpc.Metadata;
  getPeer(): string;
  getDeadline(): grpc.Deadline;
}

/** In the place of a message whose bytes do not decode: grpc-js itself would call that an internal error. */
export class Undecodable {
  readonly #cause: unknown;
  constructor(cause: unknown) {
    this.#cause = cause;
  }
  fault(method: DescMethod): Error {
    const cause = this.#cause;
    return cause instanceof WeightlineError
      ? cause
      : malformedRequest(method.input.typeName, cause instanceof Error ? cause.message : String(cause));
  }
}

function decoded(method: DescMethod, message: unknown): unknown {
  if (message instanceof Undecodable) {
    throw message.fault(method);
  }
  return message;
}

/** Messages of a caller that are kept until the handler takes them. */
const READ_AHEAD_COUNT = 16;

function contextOf(method: DescMethod, call: Call, { shutdown, cut, secured }: HandlerSurroundings) {
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
    ...(secured === true ? { contextValues: createContextValues().set(CALLER, callerOf(call.metadata)) } : {}),
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
  const context = new LazyContext(() => contextOf(method, call, surroundings));
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

/** A caller's messages, as fast as the handler takes them; ends with the signal's reason. */
async function* requestsOf(method: DescMethod, call: RequestStream, signal: AbortSignal): AsyncGenerator<unknown> {
  const limits = { highWaterMark: READ_AHEAD_COUNT, lowWaterMark: 1 };
  try {
    for await (const [message] of on(call, "data", { signal, close: ["end"], ...limits })) {
      yield decoded(method, message);
    }
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
  // A call that is reset ends first and is cancelled in the same turn: it must not look whole.
  await nextTurn();
  signal.throwIfAborted();
}

/** Waits until the stream takes more, or the call is over. */
function drained(call: ReplyStream, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      call.off("drain", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    call.on("drain", done);
    signal.addEventListener("abort", done);
  });
}

async function sendAll(method: DescMethod, call: ReplyStream, replies: unknown, signal: AbortSignal): Promise<void> {
  for await (const item of replies as AsyncIterable<Message>) {
    signal.throwIfAborted();
    if (!call.write(create(method.output, item))) {
      await drained(call, signal);
    }
  }
  call.end();
}

/** The answer, or a rejection when the server's time is over: then it does not wait for handlers. */
function uncut<T>(answer: Promise<T> | T, running: RunningCalls): Promise<T> | T {
  if (!(answer instanceof Promise)) {
    return answer;
  }
  return new Promise<T>((resolve, reject) => {
    running.add(reject);
    answer.then(resolve, reject).finally(() => running.delete(reject));
  });
}

/** The handler as grpc-js takes it, for all four kinds of methods. */
export function toGrpcHandler(
  method: DescMethod,
  handler: Handler,
  surroundings: HandlerSurroundings,
): grpc.UntypedHandleCall {
  const { requestStream, responseStream } = streamsOf(method);
  const requestOf = (call: ReplyStream, signal: AbortSignal) =>
    requestStream
      ? requestsOf(method, call as grpc.ServerDuplexStream<unknown, unknown>, signal)
      : decoded(method, (call as grpc.ServerWritableStream<unknown, unknown>).request);
  if (responseStream) {
    return (call: ReplyStream) => {
      const body = async (context: HandlerContext) => {
        // A waiting client must learn at once that the call is there.
        call.sendMetadata(new grpc.Metadata());
        return sendAll(method, call, handler(requestOf(call, context.signal), context), context.signal);
      };
      void observed(method, call, surroundings, body, (status) => call.emit("error", status));
    };
  }
  return (call: grpc.ServerUnaryCall<unknown, unknown>, callback: grpc.sendUnaryData<unknown>) => {
    const body = async (context: HandlerContext) => {
      const request = requestStream
        ? requestsOf(method, call as unknown as RequestStream, context.signal)
        : decoded(method, call.request);
      const reply = await uncut(handler(request, context), surroundings.running);
      callback(null, reply instanceof EncodedMessage ? reply : create(method.output, reply as Message));
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
