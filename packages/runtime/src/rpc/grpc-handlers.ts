import { create, type DescMessage, type DescMethod, type MessageShape, toBinary } from "@bufbuild/protobuf";
import {
  Code,
  type ContextValues,
  createContextValues,
  createHandlerContext,
  type HandlerContext,
} from "@connectrpc/connect";
import type { ActiveList, Listed } from "../active-list.ts";
import { CALLER } from "../security/access.ts";
import { CallEnd, cancelReason } from "./call-end.ts";
import { type CallFailure, failCall, newRequestId } from "./call-failure.ts";
import type { GrpcCall } from "./grpc-call.ts";
import { toHeaders } from "./grpc-request.ts";
import type { GrpcStatus } from "./grpc-status.ts";
import { CALL_OVER, LazyContext } from "./lazy-context.ts";
import type { LongDecodes } from "./long-decodes.ts";
import { brokenRequest, decodeMessage, tooLarge } from "./received-message.ts";
import { ERROR_METADATA, encodeDetail, REQUEST_ID_METADATA, statusMessage } from "./rpc-error.ts";
import { MAX_MESSAGE_BYTES } from "./server-limits.ts";
import { requestsOf, type StreamSides, sendAll } from "./stream-messages.ts";
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
  onTaken: (call: GrpcCall) => void;
  /** Calls back when it is the call's turn to start, or to read one more message. */
  takeTurn: (call: GrpcCall, start: () => void) => void;
  decodes: LongDecodes;
  /** Told of every finished call. */
  onCall?: (service: string, method: string, code: string, seconds: number) => void;
  /** Told of every call that failed. */
  onFailure?: (failure: CallFailure) => void;
}

type Message = MessageShape<DescMessage>;

const TIMER_MAX_MS = 2 ** 31 - 1;

/** Runs one call from its first turn on; it is over when this settles, and never rejects. */
export type CallRunner = (call: GrpcCall) => Promise<void>;

function valuesOf({ caller }: GrpcCall): ContextValues {
  const values = createContextValues();
  return caller === undefined ? values : values.set(CALLER, caller);
}

function contextOf(method: DescMethod, call: GrpcCall, { shutdown, cut }: HandlerSurroundings, values: ContextValues) {
  const cancelled = new AbortController();
  const leftMs = call.deadlineAtMs - performance.now();
  const context = createHandlerContext({
    service: method.parent,
    method,
    protocolName: "grpc",
    requestMethod: "POST",
    url: `grpc://${call.connection.peer.address}${call.path}`,
    requestHeader: toHeaders(call.fields, call.caller !== undefined),
    requestSignal: cancelled.signal,
    // A stream could go on for ever, and is told to end; what has one answer may still give it.
    shutdownSignal: method.methodKind === "unary" ? cut : shutdown,
    contextValues: values,
    // A timer that is further away would go off at once.
    ...(leftMs <= TIMER_MAX_MS ? { timeoutMs: Math.max(0, leftMs) } : {}),
  });
  call.onCancelled((isLate) => context.signal.aborted || cancelled.abort(isLate ? cancelReason(true) : undefined));
  return context;
}

/** The status of a failed call, told to `onFailure`; `name` like "package.Service/Method". */
function toStatus(name: string, error: unknown, onFailure: HandlerSurroundings["onFailure"]): GrpcStatus {
  const requestId = newRequestId();
  const connectError = failCall(name, error, requestId, onFailure);
  const detail = encodeDetail(connectError);
  const id: readonly [string, string] = [REQUEST_ID_METADATA, requestId];
  return {
    code: connectError.code,
    details: statusMessage(connectError),
    metadata: detail === undefined ? [id] : [id, [ERROR_METADATA, Buffer.from(detail).toString("base64")]],
  };
}

/** "resource_exhausted", as metrics name it. */
function codeName(code: number): string {
  const name = code === 0 ? "ok" : (Code[code] ?? String(code));
  return name.replace(/[A-Z]/g, (letter, at) => (at > 0 ? "_" : "") + letter.toLowerCase());
}

/** Runs one call's body, and tells the hooks how it ended. */
async function observed(
  method: DescMethod,
  call: GrpcCall,
  surroundings: HandlerSurroundings,
  body: (call: GrpcCall, context: HandlerContext) => Promise<void>,
): Promise<void> {
  const start = performance.now();
  const context = new LazyContext(
    () => valuesOf(call),
    (values) => contextOf(method, call, surroundings, values),
  );
  let code = 0;
  try {
    await body(call, context);
  } catch (error) {
    const status = toStatus(call.name, error, surroundings.onFailure);
    code = status.code;
    call.fail(status);
  } finally {
    context.end();
  }
  surroundings.onCall?.(method.parent.typeName, method.name, codeName(code), (performance.now() - start) / 1000);
}

/** The status of a call that was turned away before its handler. It is told to the hooks. */
export function turnedAway(
  call: GrpcCall,
  error: unknown,
  startedMs: number,
  surroundings: HandlerSurroundings,
): GrpcStatus {
  const status = toStatus(call.name, error, surroundings.onFailure);
  const [service = "", method = ""] = call.name.split("/");
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
  call: GrpcCall,
  { streaming, shutdown, onTaken, takeTurn, decodes }: HandlerSurroundings,
  body: (sides: StreamSides) => Promise<void>,
): Promise<void> {
  const end = new CallEnd(call);
  if (shutdown.aborted) {
    // It came before the stop and waited, for its turn or for who it is from.
    end.end(shutdown.reason);
  }
  streaming.add(end);
  try {
    await body({ end, onTaken, takeTurn, decodes });
  } finally {
    streaming.delete(end);
    end.end(CALL_OVER);
  }
}

/** The one message of a call whose request is whole. */
function onlyMessage(
  method: DescMethod,
  call: GrpcCall,
  { takeTurn, decodes }: HandlerSurroundings,
): unknown | Promise<unknown> {
  const message = call.takeMessage();
  if (message === undefined || call.waitingBytes > 0) {
    throw brokenRequest(
      message === undefined ? "the request has no whole message" : "the request has more than one message",
    );
  }
  return decodeMessage(method.input, message, call.encoding, decodes.of(call, takeTurn));
}

/** Why the message that is on its way is not taken; undefined when it may come. */
export function messageFault(call: GrpcCall): Error | undefined {
  return call.nextMessageBytes > MAX_MESSAGE_BYTES
    ? tooLarge(`a message of ${call.nextMessageBytes} bytes is too large`, MAX_MESSAGE_BYTES)
    : undefined;
}

/** What runs the calls of a method by its handler, for all four kinds of methods. */
export function createCallRunner(method: DescMethod, handler: Handler, surroundings: HandlerSurroundings): CallRunner {
  const { requestStream, responseStream } = streamsOf(method);
  const answer = async (call: GrpcCall, request: unknown, context: HandlerContext) => {
    const answered = handler(request, context);
    const reply = answered instanceof Promise ? await uncut(answered, surroundings.running) : answered;
    call.reply(
      reply instanceof EncodedMessage ? reply.bytes : toBinary(method.output, create(method.output, reply as Message)),
    );
  };
  const body = async (call: GrpcCall, context: HandlerContext) => {
    if (responseStream) {
      return streamed(call, surroundings, async (sides) => {
        call.begin();
        const request = requestStream ? requestsOf(method, call, sides) : await onlyMessage(method, call, surroundings);
        return sendAll(method, call, handler(request, context), sides.end);
      });
    }
    if (requestStream) {
      return streamed(call, surroundings, (sides) => answer(call, requestsOf(method, call, sides), context));
    }
    const request = onlyMessage(method, call, surroundings);
    // Not awaited where it is here: what a turn may take is measured around the handler.
    return answer(call, request instanceof Promise ? await uncut(request, surroundings.running) : request, context);
  };
  return (call) => observed(method, call, surroundings, body);
}

/** Which sides of a method are streams. */
export function streamsOf(method: DescMethod): { requestStream: boolean; responseStream: boolean } {
  const kind = method.methodKind;
  return {
    requestStream: kind === "client_streaming" || kind === "bidi_streaming",
    responseStream: kind === "server_streaming" || kind === "bidi_streaming",
  };
}
