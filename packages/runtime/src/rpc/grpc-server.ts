import { setMaxListeners } from "node:events";
import { ActiveList } from "../active-list.ts";
import { WeightlineError } from "../error.ts";
import { Http2Connection } from "../http2/http2-connection.ts";
import type { CallFailure } from "./call-failure.ts";
import { createCallWatch } from "./call-watch.ts";
import { type ServeConnection, type ServerSecurity, takePlainly, takeSecurely } from "./connection-intake.ts";
import { createConnectionTable } from "./connection-table.ts";
import { createGrpcCalls } from "./grpc-calls.ts";
import type { HandlerSurroundings } from "./grpc-handlers.ts";
import { LongDecodes } from "./long-decodes.ts";
import { bindPort, firstBindable, portError } from "./port-binding.ts";
import {
  HEADER_BLOCK_MAX_BYTES,
  HEADER_PAIRS_MAX_COUNT,
  type OnLimit,
  RESET_BURST_COUNT,
  RESETS_PER_S,
  SERVER_LIMITS,
  type ServerLimits,
} from "./server-limits.ts";
import type { ServiceRoute } from "./service-route.ts";

/** How long the last answers may take to leave. */
const CUT_MS = 200;
/** How often connections are looked at that may have to give a sign of life. */
const LOOK_INTERVAL_MS = 1000;

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
  const around: HandlerSurroundings = {
    shutdown: stopping.signal,
    cut: cutting.signal,
    running: new ActiveList(),
    streaming: new Set(),
    onTaken: watch.taken,
    takeTurn: ({ connection }, start) => table.startCall(connection, start),
    decodes: new LongDecodes(),
    ...(onCall === undefined ? {} : { onCall }),
    ...(onFailure === undefined ? {} : { onFailure }),
  };
  const calls = createGrpcCalls({ routes: options.routes, table, watch, around, authorize: security?.authorize });
  const http2Limits = {
    streamsCount: limits.streamsPerConnectionCount,
    headerListBytes: HEADER_BLOCK_MAX_BYTES,
    headerPairsCount: HEADER_PAIRS_MAX_COUNT,
    resetBurstCount: RESET_BURST_COUNT,
    resetsPerS: RESETS_PER_S,
  };
  const open = new Set<Http2Connection>();
  const serve: ServeConnection = (socket, peer) => {
    const connection = table.ready(socket);
    if (connection === undefined) {
      socket.destroy();
      return () => undefined;
    }
    const http2 = new Http2Connection({
      socket,
      limits: http2Limits,
      onRequest: (stream, headers) => calls.take(connection, peer, stream, headers),
    });
    connection.session = http2;
    open.add(http2);
    socket.once("close", () => open.delete(http2));
    if (stopping.signal.aborted) {
      http2.close();
    }
    return () => http2.close();
  };
  const { keepaliveIntervalMs, keepaliveTimeoutMs } = limits;
  const look = setInterval(
    () => {
      const now = performance.now();
      for (const http2 of open) {
        http2.keepAlive(now, keepaliveIntervalMs, keepaliveTimeoutMs);
      }
    },
    Math.min(LOOK_INTERVAL_MS, keepaliveIntervalMs, keepaliveTimeoutMs),
  ).unref();

  const host = await firstBindable(options.bind);
  const take = security === undefined ? takePlainly(serve) : takeSecurely(serve, security);
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
      for (const http2 of open) {
        http2.close();
      }
      const over = Promise.withResolvers<void>();
      let timer = setTimeout(() => {
        cutting.abort(reason);
        around.running.forEach((call) => {
          call.end(reason);
        });
        timer = setTimeout(over.resolve, CUT_MS);
      }, graceMs);
      void table.emptied().then(over.resolve);
      await over.promise;
      clearTimeout(timer);
      clearInterval(look);
      watch.close();
      table.close();
    },
  };
}
