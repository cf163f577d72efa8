import { type EventEmitter, on } from "node:events";
import { setImmediate as nextTurn } from "node:timers/promises";
import { create, type DescMessage, type DescMethod, type MessageShape } from "@bufbuild/protobuf";
import { Code, createHandlerContext, type HandlerContext } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { WeightlineError } from "../error.ts";
import { type CallFailure, failCall, newRequestId } from "./call-failure.ts";
import { toHeaders } from "./grpc-metadata.ts";
import { ERROR_METADATA, encodeDetail, malformedRequest, REQUEST_ID_METADATA, statusMessage } from "./rpc-error.ts";
import { EncodedMessage } from "./wire-forms.ts";

/** A handler in Connect's form, its kind known only at run time. */
export type Handler = (request: unknown, context: HandlerContext) => unknown;

/** What all calls of a server share. */
export interface HandlerSurroundings {
  /** Aborted when the server stops; its reason is what running streams end with. Calls with one answer may finish. */
  shutdown: AbortSignal;
  /** Aborted when their time is over too; its reason is what they end with, whatever their handlers do. */
  cut: AbortSignal;
  /** Told of every finished call. */
  onCall?: (service: string, method: string, code: string, seconds: number) => void;
  /** Told of every call that failed. */
  onFailure?: (failure: CallFailure) => void;
}

type Message = MessageShape<DescMessage>;
type RequestStream = grpc.ServerReadableStream<unknown, unknown> | grpc.ServerDuplexStream<unknown, unknown>;
type ReplyStream = grpc.ServerWritableStream<unknown, unknown> | grpc.ServerDuplexStream<unknown, unknown>;
type Status = Partial<grpc.StatusObject> & { code: number };

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

function contextOf(method: DescMethod, call: Call, { shutdown, cut }: HandlerSurroundings) {
  const cancelled = new AbortController();
  call.on("cancelled", () => cancelled.abort());
  const deadline = call.getDeadline();
  const deadlineMs = deadline instanceof Date ? deadline.getTime() : deadline;
  return createHandlerContext({
    service: method.parent,
    method,
    protocolName: "grpc",
    requestMethod: "POST",
    url: `grpc://${call.getPeer()}/${method.parent.typeName}/${method.name}`,
    requestHeader: toHeaders(call.metadata),
    requestSignal: cancelled.signal,
    // A stream could go on for ever, and is told to end; what has one answer may still give it.
    shutdownSignal: method.methodKind === "unary" ? cut : shutdown,
    ...(Number.isFinite(deadlineMs) ? { timeoutMs: Math.max(0, deadlineMs - Date.now()) } : {}),
  });
}

function toStatus(method: DescMethod, error: unknown, onFailure: HandlerSurroundings["onFailure"]): Status {
  const requestId = newRequestId();
  const connectError = failCall(`${method.parent.typeName}/${method.name}`, error, requestId, onFailure);
  const metadata = new grpc.Metadata();
  metadata.set(REQUEST_ID_METADATA, requestId);
  const detail = encodeDetail(connectError);
  if (detail !== undefined) {
    metadata.set(ERROR_METADATA, Buffer.from(detail));
  }
  return { code: connectError.code as number, details: statusMessage(connectError), metadata };
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
  let context: ReturnType<typeof contextOf> | undefined;
  let code = 0;
  try {
    context = contextOf(method, call, surroundings);
    await body(context);
  } catch (error) {
    const status = toStatus(method, error, surroundings.onFailure);
    code = status.code;
    fail(status);
  } finally {
    context?.abort();
  }
  surroundings.onCall?.(method.parent.typeName, method.name, codeName(code), (performance.now() - start) / 1000);
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

/** Rejects when the call is over because it was cut. */
function rejectedBy(cut: AbortSignal, over: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    over.addEventListener("abort", () => cut.aborted && reject(cut.reason), { once: true });
  });
}

/** The handler as grpc-js takes it, for all four kinds of methods. */
export function toGrpcHandler(
  method: DescMethod,
  handler: Handler,
  surroundings: HandlerSurroundings,
): grpc.UntypedHandleCall {
  const { requestStream, responseStream } = streamsOf(method);
  const requestOf = (call: Call, signal: AbortSignal) =>
    requestStream
      ? requestsOf(method, call as RequestStream, signal)
      : decoded(method, (call as grpc.ServerUnaryCall<unknown, unknown>).request);
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
      const answer = handler(requestOf(call, context.signal), context);
      const reply = await Promise.race([answer, rejectedBy(surroundings.cut, context.signal)]);
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
