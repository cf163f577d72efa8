import type { DescService } from "@bufbuild/protobuf";
import {
  type Client,
  Code,
  ConnectError,
  type ConnectRouter,
  type ContextValues,
  createClient,
  type Interceptor,
} from "@connectrpc/connect";
import { createAsyncIterable, type UniversalHandler } from "@connectrpc/connect/protocol";
import { errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import { fastifyConnectPlugin } from "@connectrpc/connect-fastify";
import { createConnectTransport } from "@connectrpc/connect-node";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { WeightlineError } from "../error.ts";
import type { ServiceRoute } from "./grpc-server.ts";
import { malformedRequest, toConnectError } from "./rpc-error.ts";

export interface LocalRpcOptions {
  routes: readonly ServiceRoute[];
  /** Bytes of one message; larger ones are refused with ResourceExhausted. */
  maxMessageBytes: number;
  /** Ends streams when the program stops. */
  shutdownSignal: AbortSignal;
  /** What a handler finds in its context, from the request. */
  contextValues?: (request: FastifyRequest) => ContextValues;
  /** Told of every finished call's failure. */
  onError?: (method: string, error: unknown) => void;
}

/** Connect calls a request that it cannot read an internal error. Handlers' own errors have become others before it sees them. */
function isUnreadable(error: unknown): error is ConnectError {
  return error instanceof ConnectError && error.code === Code.Internal;
}

/** How it words bytes that do not decode. */
const UNDECODABLE = /^parse binary: /;
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
function errorInterceptor(onError: LocalRpcOptions["onError"]): Interceptor {
  return (next) => async (request) => {
    const name = `${request.service.typeName}/${request.method.name}`;
    const translate = (thrown: unknown) => {
      const error = readableFault(request.method.input.typeName, thrown);
      onError?.(name, error);
      return toConnectError(error);
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
    interceptors: [errorInterceptor(options.onError)],
    ...(options.contextValues === undefined ? {} : { contextValues: options.contextValues }),
  });
}

/** A client of a service behind a Unix socket. */
export function createLocalClient<Service extends DescService>(service: Service, socketPath: string): Client<Service> {
  const transport = createConnectTransport({
    baseUrl: "http://localhost",
    httpVersion: "1.1",
    useBinaryFormat: true,
    acceptCompression: [],
    nodeOptions: { socketPath },
  });
  return createClient(service, transport);
}
