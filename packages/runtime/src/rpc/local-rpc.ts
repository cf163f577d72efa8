import type { IncomingMessage } from "node:http";
import type { DescMethod } from "@bufbuild/protobuf";
import { Code, ConnectError, type ContextValues, createContextValues } from "@connectrpc/connect";
import type { FastifyInstance } from "fastify";
import { ActiveList } from "../active-list.ts";
import { type CallFailure, newRequestId } from "./call-failure.ts";
import type { Handler } from "./grpc-handlers.ts";
import type { LocalContext } from "./local-context.ts";
import { createLocalHandler, type LocalSurroundings, type NumberedCall } from "./local-handlers.ts";
import { REQUEST_ID_METADATA } from "./rpc-error.ts";
import type { ServiceRoute } from "./service-route.ts";

export interface LocalRpcOptions {
  /** Methods with a stream of requests are left out: HTTP/1.1 cannot serve them. */
  routes: readonly ServiceRoute[];
  /** Bytes of one message; larger ones are refused with ResourceExhausted. */
  maxMessageBytes: number;
  /** Ends calls when the program stops. */
  shutdownSignal: AbortSignal;
  /** What a handler finds in its context, from the request. */
  contextValues?: (request: IncomingMessage) => ContextValues;
  /** Told of every call that failed; its caller got the same request id. */
  onFailure?: (failure: CallFailure) => void;
}

/** A path that is logged is the caller's text. */
const LOGGED_PATH_MAX = 200;
/** The forms that a message may have. */
const CONTENT_TYPES = /^application\/(connect\+)?(json|proto)\b/i;

function ignore(): void {}

const NUMBERED = Symbol("the request's id");
type Incoming = IncomingMessage & { [NUMBERED]?: NumberedCall };

function handlerOf({ implementation }: ServiceRoute, method: DescMethod): Handler {
  const handler = (implementation as Record<string, Handler | undefined>)[method.localName];
  return (
    handler?.bind(implementation) ??
    (() => {
      throw new ConnectError(`${method.parent.typeName}.${method.name} is not served here`, Code.Unimplemented);
    })
  );
}

/** Mounts services on fastify: Connect over HTTP/1.1, JSON or binary, so that curl can speak it. */
export function mountLocalRpc(server: FastifyInstance, options: LocalRpcOptions): void {
  const running = new ActiveList<LocalContext>();
  options.shutdownSignal.addEventListener(
    "abort",
    () =>
      running.forEach((call) => {
        call.end(options.shutdownSignal.reason);
      }),
    { once: true },
  );
  const surroundings: LocalSurroundings = {
    maxMessageBytes: options.maxMessageBytes,
    running,
    shutdown: options.shutdownSignal,
    contextValues: options.contextValues ?? createContextValues,
    onFailure: options.onFailure,
  };
  server.addHook("onRequest", (request, reply, done) => {
    const raw: Incoming = request.raw;
    const numbered = { id: newRequestId(), failed: false };
    raw[NUMBERED] = numbered;
    reply.raw.setHeader(REQUEST_ID_METADATA, numbered.id);
    // A caller that leaves in the middle of its request: an error that nobody listens for would end the program.
    raw.on("error", ignore);
    done();
  });
  // What is refused before a handler sees it: a body that is no message, a path that is no method.
  server.addHook("onResponse", (request, reply, done) => {
    const { statusCode } = reply.raw;
    const call = (request.raw as Incoming)[NUMBERED];
    if (statusCode >= 400 && call?.failed === false) {
      const error = new Error(`refused with HTTP status ${statusCode} before it was read`);
      const method = request.url.slice(1, LOGGED_PATH_MAX);
      options.onFailure?.({ method, code: "InvalidArgument", requestId: call.id, error });
    }
    done();
  });
  // Bodies are read by the handlers.
  server.removeAllContentTypeParsers();
  server.addContentTypeParser(CONTENT_TYPES, (_request, _payload, done) => done(null));
  for (const service of options.routes) {
    for (const method of service.service.methods) {
      if (method.methodKind !== "unary" && method.methodKind !== "server_streaming") {
        continue;
      }
      const serve = createLocalHandler(method, handlerOf(service, method), surroundings);
      server.all(`/${method.parent.typeName}/${method.name}`, (request, reply) => {
        reply.hijack();
        const numbered = (request.raw as Incoming)[NUMBERED] ?? { id: newRequestId(), failed: false };
        void serve({ request: request.raw, response: reply.raw, call: numbered });
      });
    }
  }
}
