import type { IncomingMessage, ServerResponse } from "node:http";
import type { DescService } from "@bufbuild/protobuf";
import { type Client, type ContextValues, createClient, type Interceptor } from "@connectrpc/connect";
import { encodeEnvelope } from "@connectrpc/connect/protocol";
import {
  codeToHttpStatus,
  contentTypeUnaryJson,
  endStreamFlag,
  endStreamToJson,
  errorToJsonBytes,
  parseContentType,
} from "@connectrpc/connect/protocol-connect";
import { fastifyConnectPlugin } from "@connectrpc/connect-fastify";
import { createConnectTransport } from "@connectrpc/connect-node";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { ServiceRoute } from "./grpc-server.ts";
import { toConnectError } from "./rpc-error.ts";

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

/** Errors get their code and details here, once, for every handler. */
function errorInterceptor(onError: LocalRpcOptions["onError"]): Interceptor {
  return (next) => async (request) => {
    const name = `${request.service.typeName}/${request.method.name}`;
    const translate = (error: unknown) => {
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
  await server.register(fastifyConnectPlugin, {
    routes(router) {
      for (const { service, implementation } of options.routes) {
        router.service(service, implementation as never);
      }
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

/** How a unary call is answered with an error, for those who write the answer themselves. */
export function unaryAnswer(error: unknown): { status: number; contentType: string; body: Uint8Array } {
  const known = toConnectError(error);
  return {
    status: codeToHttpStatus(known.code),
    contentType: contentTypeUnaryJson,
    body: errorToJsonBytes(known, undefined),
  };
}

/** Answers a call with an error before anything else has seen it; its body is not kept. */
export function refuseLocalCall(request: IncomingMessage, response: ServerResponse, error: unknown): void {
  const asked = request.headers["content-type"] ?? "";
  if (parseContentType(asked)?.stream === true) {
    const end = endStreamToJson(new Headers(), toConnectError(error), undefined);
    response.writeHead(200, { "content-type": asked });
    response.end(encodeEnvelope(endStreamFlag, Buffer.from(JSON.stringify(end))));
  } else {
    const { status, contentType, body } = unaryAnswer(error);
    response.writeHead(status, { "content-type": contentType, "content-length": body.length });
    response.end(body);
  }
  request.resume();
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
