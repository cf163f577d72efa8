import type { DescService } from "@bufbuild/protobuf";
import { type Client, type ContextValues, createClient, type Interceptor } from "@connectrpc/connect";
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
