import { setMaxListeners } from "node:events";
import type { ServerOptions } from "node:http2";
import { createServer } from "node:net";
import { type DescMessage, type DescService, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { ActiveList } from "../active-list.ts";
import { WeightlineError } from "../error.ts";
import { formatAddress } from "../network-address.ts";
import type { CallFailure } from "./call-failure.ts";
import { createCallWatch } from "./call-watch.ts";
import { type ServerSecurity, takePlainly, takeSecurely } from "./connection-intake.ts";
import { createConnectionTable } from "./connection-table.ts";
import { type Handler, type HandlerSurroundings, streamsOf, toGrpcHandler, turnedAway } from "./grpc-handlers.ts";
import { decodeRequest } from "./message-values.ts";
import { bindPort } from "./port-binding.ts";
import {
  HEADER_BLOCK_MAX_BYTES,
  HEADER_PAIRS_MAX_COUNT,
  MAX_MESSAGE_BYTES,
  type OnLimit,
  RESET_BURST_COUNT,
  RESETS_PER_S,
  SERVER_LIMITS,
  type ServerLimits,
} from "./server-limits.ts";
import { Undecodable } from "./stream-messages.ts";
import { EncodedMessage } from "./wire-forms.ts";

/** How long the last answers may take to leave. */
const CUT_MS = 200;

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
  /** Told of every connection and call that a limit ended. */
  onLimit?: OnLimit;
  /** In place of those of SERVER_LIMITS. */
  limits?: Partial<ServerLimits>;
  /** Undefined: security is off. */
  security?: ServerSecurity | undefined;
}

export interface GrpcServer {
  /** Where it listens. */
  readonly host: string;
  readonly port: number;
  /** Connections that are open. */
  connections(): number;
  /** Ends streams by their signal, waits `graceMs` for calls with one answer, then ends them as Unavailable. */
  stop(graceMs: number): Promise<void>;
}

grpc.setLogVerbosity(grpc.logVerbosity.NONE);

function decode(type: DescMessage, bytes: Uint8Array): unknown {
  try {
    return decodeRequest(type, bytes);
  } catch (error) {
    return new Undecodable(error);
  }
}

function encode(type: DescMessage, message: unknown): Buffer {
  const bytes =
    message instanceof EncodedMessage ? message.bytes : toBinary(type, message as MessageShape<DescMessage>);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
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
      responseSerialize: (message) => encode(method.output, message),
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

/** Sets what grpc-js has no option for, for all HTTP/2 servers that it makes from then on. */
function limitSessions(server: grpc.Server): void {
  const { commonServerOptions } = server as unknown as { commonServerOptions: ServerOptions };
  commonServerOptions.maxHeaderListPairs = HEADER_PAIRS_MAX_COUNT;
  commonServerOptions.streamResetBurst = RESET_BURST_COUNT;
  commonServerOptions.streamResetRate = RESETS_PER_S;
  // Unset, nothing but the 16 MiB of node itself would hold, for each call.
  commonServerOptions.settings = { ...commonServerOptions.settings, maxHeaderListSize: HEADER_BLOCK_MAX_BYTES };
}

/** Serves gRPC. Pings of clients are answered however often they come. */
export async function createGrpcServer(options: GrpcServerOptions): Promise<GrpcServer> {
  const { onCall, onFailure, security } = options;
  const stopping = new AbortController();
  const cutting = new AbortController();
  // Each running call listens.
  setMaxListeners(0, stopping.signal, cutting.signal);
  const limits = { ...SERVER_LIMITS, ...options.limits };
  const onLimit = options.onLimit ?? (() => undefined);
  const table = createConnectionTable(limits, onLimit);
  const watch = createCallWatch(table, limits, onLimit);
  const server = new grpc.Server({
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_concurrent_streams": limits.streamsPerConnectionCount,
    "grpc.keepalive_time_ms": limits.keepaliveIntervalMs,
    "grpc.keepalive_timeout_ms": limits.keepaliveTimeoutMs,
    // It would keep a record for each connection.
    "grpc.enable_channelz": 0,
    interceptors: [watch.interceptor],
  });
  limitSessions(server);
  const around: HandlerSurroundings = {
    shutdown: stopping.signal,
    cut: cutting.signal,
    running: new ActiveList(),
    streaming: new Set(),
    onTaken: watch.taken,
    secured: security !== undefined,
    ...(onCall === undefined ? {} : { onCall }),
    ...(onFailure === undefined ? {} : { onFailure }),
  };
  for (const entry of options.routes) {
    addRoute(server, entry, around);
  }
  const host = await firstBindable(options.bind);
  const take =
    security === undefined
      ? takePlainly(server, table)
      : takeSecurely(server, table, security, (path, error, startedMs) => turnedAway(path, error, startedMs, around));
  const listener = await bindPort(table, { host, port: options.port }, take).catch((error: Error) => {
    throw portError(options.portFlag, host, options.port, error);
  });
  return {
    host,
    port: listener.port,
    connections: () => table.count(),
    async stop(graceMs) {
      listener.stop();
      const reason = new WeightlineError("Unavailable", "the program stops", { wayOut: "try another replica" });
      stopping.abort(reason);
      for (const end of around.streaming) {
        end.end(reason);
      }
      const over = Promise.withResolvers<void>();
      let timer = setTimeout(() => {
        cutting.abort(reason);
        around.running.forEach((call) => {
          call.end(reason);
        });
        timer = setTimeout(over.resolve, CUT_MS);
      }, graceMs);
      // The server does not know of connections any more that were asked to come again: their calls may end too.
      server.tryShutdown(() => void table.emptied().then(over.resolve));
      await over.promise;
      clearTimeout(timer);
      server.forceShutdown();
      watch.close();
      table.close();
    },
  };
}
