import { createServer } from "node:net";
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescService,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Code, createHandlerContext, type ServiceImpl } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { WeightlineError } from "../error.ts";
import { formatAddress } from "../network-address.ts";
import { ERROR_METADATA, encodeDetail, toConnectError } from "./rpc-error.ts";

/** contract.md: 100 MiB both ways. */
export const MAX_MESSAGE_BYTES = 100 * 1024 * 1024;

/** A service with its handlers, in Connect's form, so that one implementation serves gRPC and HTTP/1.1. */
export interface ServiceRoute<Service extends DescService = DescService> {
  service: Service;
  implementation: Partial<ServiceImpl<Service>>;
}

/** Makes a route with its types checked against each other. */
export function route<Service extends DescService>(
  service: Service,
  implementation: Partial<ServiceImpl<Service>>,
): ServiceRoute {
  return { service, implementation } as unknown as ServiceRoute;
}

export interface GrpcServerOptions {
  routes: readonly ServiceRoute[];
  /** Addresses to try in order: "::" serves both families, and is passed over where the kernel has no IPv6. */
  bind: readonly string[];
  /** 0: any free port. */
  port: number;
  /** The flag that sets the port, for errors. */
  portFlag: string;
  /** Told of every finished call. */
  onCall?: (service: string, method: string, code: string, seconds: number) => void;
  /** Told of failures whose cause the caller does not see. */
  onError?: (service: string, method: string, error: unknown) => void;
}

export interface GrpcServer {
  /** Where it listens. */
  readonly host: string;
  readonly port: number;
  /** Ends streams by their signal, waits `graceMs` for running calls, then cuts them. */
  stop(graceMs: number): Promise<void>;
}

grpc.setLogVerbosity(grpc.logVerbosity.NONE);

type Call = grpc.ServerUnaryCall<unknown, unknown> | grpc.ServerWritableStream<unknown, unknown>;
type Handler = (request: unknown, context: ReturnType<typeof createHandlerContext>) => unknown;

interface Shared {
  options: GrpcServerOptions;
  shutdown: AbortSignal;
}

function contextOf(service: DescService, method: DescMethod, call: Call, shared: Shared) {
  const cancelled = new AbortController();
  call.on("cancelled", () => cancelled.abort());
  const deadline = call.getDeadline();
  const deadlineMs = deadline instanceof Date ? deadline.getTime() : deadline;
  const header = new Headers();
  for (const [key, value] of Object.entries(call.metadata.getMap())) {
    header.set(key, String(value));
  }
  return createHandlerContext({
    service,
    method,
    protocolName: "grpc",
    requestMethod: "POST",
    url: `grpc://${call.getPeer()}/${service.typeName}/${method.name}`,
    requestHeader: header,
    requestSignal: cancelled.signal,
    shutdownSignal: shared.shutdown,
    ...(Number.isFinite(deadlineMs) ? { timeoutMs: Math.max(0, deadlineMs - Date.now()) } : {}),
  });
}

function toServiceError(
  service: DescService,
  method: DescMethod,
  error: unknown,
  shared: Shared,
): Partial<grpc.StatusObject> & { code: number } {
  const connectError = toConnectError(error);
  if (connectError.code === Code.Internal || connectError.code === Code.Unknown) {
    shared.options.onError?.(service.typeName, method.name, error);
  }
  const metadata = new grpc.Metadata();
  const detail = encodeDetail(connectError);
  if (detail !== undefined) {
    metadata.set(ERROR_METADATA, Buffer.from(detail));
  }
  return { code: connectError.code as number, details: connectError.rawMessage, metadata };
}

/** Runs one call and tells the metrics hook how it ended. */
async function observed(
  service: DescService,
  method: DescMethod,
  shared: Shared,
  body: () => Promise<number>,
): Promise<void> {
  const start = performance.now();
  const code = await body();
  const name =
    code === 0
      ? "ok"
      : (Code[code] ?? String(code)).replace(/[A-Z]/g, (letter, at) => (at > 0 ? "_" : "") + letter.toLowerCase());
  shared.options.onCall?.(service.typeName, method.name, name, (performance.now() - start) / 1000);
}

function unaryHandler(
  service: DescService,
  method: DescMethod,
  handler: Handler,
  shared: Shared,
): grpc.handleUnaryCall<unknown, unknown> {
  return (call, callback) => {
    void observed(service, method, shared, async () => {
      const context = contextOf(service, method, call, shared);
      try {
        const reply = create(method.output, (await handler(call.request, context)) as MessageShape<DescMessage>);
        callback(null, reply);
        return 0;
      } catch (error) {
        const status = toServiceError(service, method, error, shared);
        callback(status);
        return status.code;
      } finally {
        context.abort();
      }
    });
  };
}

/** Waits until the stream takes more, or the call is over. */
function drained(call: grpc.ServerWritableStream<unknown, unknown>, signal: AbortSignal): Promise<void> {
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

function streamHandler(
  service: DescService,
  method: DescMethod,
  handler: Handler,
  shared: Shared,
): grpc.handleServerStreamingCall<unknown, unknown> {
  return (call) => {
    void observed(service, method, shared, async () => {
      const context = contextOf(service, method, call, shared);
      // A waiting client must learn at once that the call is there.
      call.sendMetadata(new grpc.Metadata());
      try {
        for await (const item of handler(call.request, context) as AsyncIterable<MessageShape<DescMessage>>) {
          if (!call.write(create(method.output, item)) && !context.signal.aborted) {
            await drained(call, context.signal);
          }
        }
        call.end();
        return 0;
      } catch (error) {
        const status = toServiceError(service, method, error, shared);
        call.emit("error", status);
        return status.code;
      } finally {
        context.abort();
      }
    });
  };
}

function addRoute(server: grpc.Server, { service, implementation }: ServiceRoute, shared: Shared): void {
  const definition: Record<string, grpc.MethodDefinition<unknown, unknown>> = {};
  const handlers: grpc.UntypedServiceImplementation = {};
  for (const method of service.methods) {
    const handler = (implementation as Record<string, Handler | undefined>)[method.localName];
    definition[method.name] = {
      path: `/${service.typeName}/${method.name}`,
      requestStream: false,
      responseStream: method.methodKind === "server_streaming",
      requestSerialize: (message) => Buffer.from(toBinary(method.input, message as MessageShape<DescMessage>)),
      requestDeserialize: (bytes) => fromBinary(method.input, bytes),
      responseSerialize: (message) => Buffer.from(toBinary(method.output, message as MessageShape<DescMessage>)),
      responseDeserialize: (bytes) => fromBinary(method.output, bytes),
    };
    if (handler !== undefined) {
      const bound = handler.bind(implementation);
      handlers[method.name] =
        method.methodKind === "server_streaming"
          ? streamHandler(service, method, bound, shared)
          : unaryHandler(service, method, bound, shared);
    }
  }
  server.addService(definition, handlers);
}

/** The first of the addresses that the kernel has. A port in use is for the server itself to report. */
export async function firstBindable(bind: readonly string[]): Promise<string> {
  for (const host of bind) {
    const code = await new Promise<string | undefined>((resolve) => {
      const probe = createServer();
      probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code));
      probe.listen({ host, port: 0 }, () => probe.close(() => resolve(undefined)));
    });
    if (code !== "EAFNOSUPPORT" && code !== "EADDRNOTAVAIL") {
      return host;
    }
  }
  return bind.at(-1) ?? "0.0.0.0";
}

/** The error of a port that cannot be opened. */
export function portError(flag: string, host: string, port: number, cause: Error): WeightlineError {
  const taken = /EADDRINUSE/.test(cause.message);
  const why = taken ? "another program has it" : cause.message;
  return new WeightlineError("InUse", `port ${port} (${flag}) cannot be opened on ${host}: ${why}`, {
    field: flag,
    value: formatAddress({ host, port }),
    wayOut: `stop what has the port, or give another ${flag} (0: any free one)`,
    cause,
  });
}

/** Serves gRPC. Pings of clients are answered however often they come. */
export async function createGrpcServer(options: GrpcServerOptions): Promise<GrpcServer> {
  const stopping = new AbortController();
  const server = new grpc.Server({
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    // Two servers on one port would take turns in answering.
    "grpc.so_reuseport": 0,
  });
  for (const entry of options.routes) {
    addRoute(server, entry, { options, shutdown: stopping.signal });
  }
  const host = await firstBindable(options.bind);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(
      formatAddress({ host, port: options.port }),
      grpc.ServerCredentials.createInsecure(),
      (error, bound) =>
        error === null ? resolve(bound) : reject(portError(options.portFlag, host, options.port, error)),
    );
  });
  return {
    host,
    port,
    async stop(graceMs) {
      stopping.abort(new WeightlineError("Unavailable", "the program stops", { wayOut: "try another replica" }));
      const { promise, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(() => {
        server.forceShutdown();
        resolve();
      }, graceMs);
      server.tryShutdown(() => resolve());
      await promise;
      clearTimeout(timer);
      server.forceShutdown();
    },
  };
}
