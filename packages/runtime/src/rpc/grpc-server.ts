import { createServer } from "node:net";
import { type DescMessage, type DescService, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { WeightlineError } from "../error.ts";
import { formatAddress } from "../network-address.ts";
import type { CallFailure } from "./call-failure.ts";
import {
  type Handler,
  type HandlerSurroundings,
  streamsOf,
  toGrpcHandler,
  turnedAway,
  Undecodable,
} from "./grpc-handlers.ts";
import { bindSecurely, SECURE_SERVER_OPTIONS, type ServerSecurity } from "./secure-binding.ts";

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
  /** Told of every call that failed; its caller got the same request id. */
  onFailure?: (failure: CallFailure) => void;
  /** Undefined: security is off. */
  security?: ServerSecurity | undefined;
}

export interface GrpcServer {
  /** Where it listens. */
  readonly host: string;
  readonly port: number;
  /** Ends streams by their signal, waits `graceMs` for running calls, then cuts them. */
  stop(graceMs: number): Promise<void>;
}

grpc.setLogVerbosity(grpc.logVerbosity.NONE);

function decode(type: DescMessage, bytes: Uint8Array): unknown {
  try {
    return fromBinary(type, bytes);
  } catch (error) {
    return new Undecodable(error);
  }
}

function addRoute(server: grpc.Server, { service, implementation }: ServiceRoute, around: HandlerSurroundings): void {
  const definition: Record<string, grpc.MethodDefinition<unknown, unknown>> = {};
  const handlers: grpc.UntypedServiceImplementation = {};
  for (const method of service.methods) {
    const handler = (implementation as Record<string, Handler | undefined>)[method.localName];
    definition[method.name] = {
      path: `/${service.typeName}/${method.name}`,
      ...streamsOf(method),
      requestSerialize: (message) => Buffer.from(toBinary(method.input, message as MessageShape<DescMessage>)),
      requestDeserialize: (bytes) => decode(method.input, bytes),
      responseSerialize: (message) => Buffer.from(toBinary(method.output, message as MessageShape<DescMessage>)),
      responseDeserialize: (bytes) => fromBinary(method.output, bytes),
    };
    if (handler !== undefined) {
      handlers[method.name] = toGrpcHandler(method, handler.bind(implementation), around);
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

/** Listens; `stop` takes no more, and `cut` ends, what the server itself does not know of. */
async function listen(
  server: grpc.Server,
  { bind, port, portFlag, security }: GrpcServerOptions,
  around: HandlerSurroundings,
): Promise<{ host: string; port: number; stop: () => void; cut: () => void }> {
  const host = await firstBindable(bind);
  try {
    if (security !== undefined) {
      const binding = await bindSecurely(server, { host, port }, security, (path, error, startedMs) =>
        turnedAway(path, error, startedMs, around),
      );
      return { host, ...binding };
    }
    const bound = await new Promise<number>((resolve, reject) => {
      server.bindAsync(formatAddress({ host, port }), grpc.ServerCredentials.createInsecure(), (error, at) =>
        error === null ? resolve(at) : reject(error),
      );
    });
    return { host, port: bound, stop: () => undefined, cut: () => undefined };
  } catch (error) {
    throw portError(portFlag, host, port, error as Error);
  }
}

/** Serves gRPC. Pings of clients are answered however often they come. */
export async function createGrpcServer(options: GrpcServerOptions): Promise<GrpcServer> {
  const { onCall, onFailure } = options;
  const stopping = new AbortController();
  const server = new grpc.Server({
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    // Two servers on one port would take turns in answering.
    "grpc.so_reuseport": 0,
    ...(options.security === undefined ? {} : SECURE_SERVER_OPTIONS),
  });
  const around: HandlerSurroundings = {
    shutdown: stopping.signal,
    secured: options.security !== undefined,
    ...(onCall === undefined ? {} : { onCall }),
    ...(onFailure === undefined ? {} : { onFailure }),
  };
  for (const entry of options.routes) {
    addRoute(server, entry, around);
  }
  const { host, port, stop, cut } = await listen(server, options, around);
  return {
    host,
    port,
    async stop(graceMs) {
      stopping.abort(new WeightlineError("Unavailable", "the program stops", { wayOut: "try another replica" }));
      stop();
      const { promise, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(() => {
        server.forceShutdown();
        resolve();
      }, graceMs);
      server.tryShutdown(() => resolve());
      await promise;
      clearTimeout(timer);
      server.forceShutdown();
      cut();
    },
  };
}
