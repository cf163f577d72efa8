import type { IncomingMessage, ServerResponse } from "node:http";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type ContextValues,
  createContextKey,
  createContextValues,
  type Interceptor,
} from "@connectrpc/connect";
import { createAsyncIterable, encodeEnvelope, type UniversalHandler } from "@connectrpc/connect/protocol";
import {
  codeToHttpStatus,
  contentTypeUnaryJson,
  endStreamFlag,
  endStreamToJson,
  errorToJsonBytes,
  parseContentType,
} from "@connectrpc/connect/protocol-connect";
import { fastifyConnectPlugin } from "@connectrpc/connect-fastify";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { WeightlineError } from "../error.ts";
import { type CallFailure, failCall, newRequestId } from "./call-failure.ts";
import type { ServiceRoute } from "./grpc-server.ts";
import { malformedRequest, REQUEST_ID_METADATA, toConnectError } from "./rpc-error.ts";

export interface LocalRpcOptions {
  routes: readonly ServiceRoute[];
  /** Bytes of one message; larger ones are refused with ResourceExhausted. */
  maxMessageBytes: number;
  /** Ends streams when the program stops. */
  shutdownSignal: AbortSignal;
  /** What a handler finds in its context, from the request. */
  contextValues?: (request: FastifyRequest) => ContextValues;
  /** Told of every call that failed; its caller got the same request id. */
  onFailure?: (failure: CallFailure) => void;
}

/** One request, while it runs. */
interface Request {
  readonly id: string;
  /** Its failure was told. */
  failed: boolean;
}

const requestKey = createContextKey<Request | undefined>(undefined, { description: "the HTTP request" });
/** A path that is logged is the caller's text. */
const LOGGED_PATH_MAX = 200;
/** Connect calls a request that it cannot read an internal error. Handlers' own errors have become others before it sees them. */
function isUnreadable(error: unknown): error is ConnectError {
  return error instanceof ConnectError && error.code === Code.Internal;
}

/** How it words bytes that do not decode. */
const UNDECODABLE = /^parse binary: /;
/** A refusal's content types that are remembered: those that clients send are few. */
const REFUSAL_FORMS_MAX = 8;
/** What a failure of ours is called. */
const OWN_FAILURE = /^internal error/;

/** What the reading of a request threw, in words; anything else as it is. */
function readableFault(typeName: string, thrown: unknown): unknown {
  if (isUnreadable(thrown)) {
    return malformedRequest(typeName, thrown.rawMessage.replace(UNDECODABLE, ""));
  }
  // How Node words a connection that closed before the request was whole.
  const { code, message } = thrown instanceof Error ? (thrown as NodeJS.ErrnoException) : {};
  return code === "ECONNRESET" && message === "aborted"
    ? new WeightlineError("Cancelled", "the caller left in the middle of its request", { cause: thrown })
    : thrown;
}

/** Connect decodes the message of a unary call outside of interceptors: its answer is put right here. */
function withReadableFaults(handler: UniversalHandler): UniversalHandler {
  const handle: typeof handler = Object.assign(async (request: Parameters<UniversalHandler>[0]) => {
    const response = await handler(request);
    if (response.status !== 500 || response.body === undefined) {
      return response;
    }
    const pieces: Uint8Array[] = [];
    for await (const piece of response.body) {
      pieces.push(piece);
    }
    const body = Buffer.concat(pieces);
    const { code, message } = JSON.parse(body.toString("utf8")) as { code?: string; message?: string };
    if (code !== "internal" || message === undefined || OWN_FAILURE.test(message)) {
      return { ...response, body: createAsyncIterable([body]) };
    }
    const fault = malformedRequest(handler.method.input.typeName, message.replace(UNDECODABLE, ""));
    const words = errorToJsonBytes(toConnectError(fault), undefined);
    const header = new Headers(response.header);
    header.set("content-length", String(words.byteLength));
    return { ...response, status: 400, header, body: createAsyncIterable([words]) };
  }, handler);
  return handle;
}

function mendHandlers(router: ConnectRouter): void {
  for (const [i, handler] of router.handlers.entries()) {
    router.handlers[i] = withReadableFaults(handler);
  }
}

/** Errors get their code and details here, once, for every handler. */
function errorInterceptor(onFailure: LocalRpcOptions["onFailure"]): Interceptor {
  return (next) => async (request) => {
    const name = `${request.service.typeName}/${request.method.name}`;
    const translate = (thrown: unknown) => {
      const error = readableFault(request.method.input.typeName, thrown);
      const call = request.contextValues.get(requestKey) ?? { id: newRequestId(), failed: false };
      call.failed = true;
      return failCall(name, error, call.id, onFailure);
    };
    try {
      const response = await next(request);
      if (!response.stream) {
        return response;
      }
      const { message } = response;
      async function* translated() {
        try {
          yield* message;
        } catch (error) {
          throw translate(error);
        }
      }
      return { ...response, message: translated() };
    } catch (error) {
      throw translate(error);
    }
  };
}

/** Mounts services on fastify: Connect over HTTP/1.1, JSON or binary, so that curl can speak it. */
export async function mountLocalRpc(server: FastifyInstance, options: LocalRpcOptions): Promise<void> {
  const requests = new WeakMap<object, Request>();
  server.addHook("onRequest", async (request, reply) => {
    const id = newRequestId();
    requests.set(request.raw, { id, failed: false });
    reply.raw.setHeader(REQUEST_ID_METADATA, id);
  });
  // What is refused before a handler sees it: a body that is no message, a path that is no method.
  server.addHook("onResponse", async (request, reply) => {
    const { statusCode } = reply.raw;
    const call = requests.get(request.raw);
    if (statusCode >= 400 && call?.failed === false) {
      const error = new Error(`refused with HTTP status ${statusCode} before it was read`);
      const method = request.url.slice(1, LOGGED_PATH_MAX);
      options.onFailure?.({ method, code: "InvalidArgument", requestId: call.id, error });
    }
  });
  // A caller that leaves in the middle of its request: Connect takes its listener away before the error comes, and an error that nobody
  // listens for ends the program.
  server.addHook("onRequest", async ({ raw }) => void raw.on("error", () => undefined));
  await server.register(fastifyConnectPlugin, {
    routes(router) {
      for (const { service, implementation } of options.routes) {
        router.service(service, implementation as never);
      }
      mendHandlers(router);
    },
    grpc: false,
    grpcWeb: false,
    // Compressing costs more than a Unix socket.
    acceptCompression: [],
    readMaxBytes: options.maxMessageBytes,
    shutdownSignal: options.shutdownSignal,
    interceptors: [errorInterceptor(options.onFailure)],
    contextValues: (request) =>
      (options.contextValues?.(request) ?? createContextValues()).set(requestKey, requests.get(request.raw)),
  });
}

interface Answer {
  readonly status: number;
  readonly contentType: string;
  readonly body: Uint8Array;
}

/** How a unary call is answered with an error, for those who write the answer themselves. */
export function unaryAnswer(error: unknown): Answer {
  const known = toConnectError(error);
  return {
    status: codeToHttpStatus(known.code),
    contentType: contentTypeUnaryJson,
    body: errorToJsonBytes(known, undefined),
  };
}

function streamAnswer(error: unknown, contentType: string): Answer {
  const end = endStreamToJson(new Headers(), toConnectError(error), undefined);
  return { status: 200, contentType, body: encodeEnvelope(endStreamFlag, Buffer.from(JSON.stringify(end))) };
}

/** By error and content type: one that many calls are refused with is put in words once. */
const refusals = new WeakMap<Error, Map<string, Answer>>();

function refusalAnswer(error: Error, contentType: string): Answer {
  const known = refusals.get(error) ?? new Map<string, Answer>();
  refusals.set(error, known);
  const stream = parseContentType(contentType)?.stream === true;
  const key = stream ? contentType : "";
  const answer = known.get(key) ?? (stream ? streamAnswer(error, contentType) : unaryAnswer(error));
  if (known.size < REFUSAL_FORMS_MAX) {
    known.set(key, answer);
  }
  return answer;
}

/** Answers a call with an error before anything else has seen it; its body is not kept. */
export function refuseLocalCall(request: IncomingMessage, response: ServerResponse, error: Error): void {
  const { status, contentType, body } = refusalAnswer(error, request.headers["content-type"] ?? "");
  // With its length: HTTP/1.0 has no other way to tell where it ends on a connection that stays.
  response.writeHead(status, { "content-type": contentType, "content-length": body.length });
  response.end(body);
  request.resume();
}
