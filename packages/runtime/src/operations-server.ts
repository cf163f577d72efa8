import type { AddressInfo } from "node:net";
import fastify, { type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import type { Metrics } from "./metrics.ts";
import { type CallFailure, failCall, newRequestId } from "./rpc/call-failure.ts";
import { firstBindable, portError } from "./rpc/port-binding.ts";
import { fromRpcError, REQUEST_ID_METADATA } from "./rpc/rpc-error.ts";

export interface OperationsServerOptions {
  /** Addresses to try in order. */
  bind: readonly string[];
  /** 0: any free port. */
  port: number;
  portFlag: string;
  metrics: Metrics;
  /** Reasons why the program cannot do its work now; empty when it can. */
  notReady: () => readonly string[];
  /** Told of every request that failed; its caller got the same request id. */
  onFailure?: (failure: CallFailure) => void;
  /** Adds routes of the program's own. */
  routes?: (server: FastifyInstance) => void;
}

export interface OperationsServer {
  readonly host: string;
  readonly port: number;
  stop(): Promise<void>;
}

/** HTTP's codes for ours; all others are 500. */
const HTTP_STATUS: Readonly<Record<string, number>> = {
  InvalidArgument: 400,
  PermissionDenied: 403,
  NotFound: 404,
  Unavailable: 503,
  DeadlineExceeded: 504,
};

/** An error as its caller gets it: with the id that the log has it under, and no words of an internal one. */
function answerError(options: OperationsServerOptions) {
  return (error: FastifyError, request: FastifyRequest, reply: FastifyReply) => {
    const { statusCode = 500 } = error;
    if (statusCode < 500) {
      return reply.code(statusCode).send({ error: error.message });
    }
    const requestId = newRequestId();
    const method = `${request.method} ${request.routeOptions.url ?? "none"}`;
    const { code, message } = fromRpcError(failCall(method, error, requestId, options.onFailure));
    return reply
      .code(HTTP_STATUS[code] ?? 500)
      .header(REQUEST_ID_METADATA, requestId)
      .send({ code, error: message, request: requestId });
  };
}

/** HTTP for operators: /metrics, /healthz (the process lives), /readyz (200, or 503 with the reasons). */
export async function createOperationsServer(options: OperationsServerOptions): Promise<OperationsServer> {
  const server = fastify({ forceCloseConnections: true });
  server.setErrorHandler(answerError(options));
  const ready = options.metrics.gauge(
    "weightline_ready",
    "1 when the program can do its work, 0 when /readyz says why not",
  );
  options.metrics.onCollect(() => ready.set(options.notReady().length === 0 ? 1 : 0));
  server.get("/metrics", async (request, reply) => {
    const { contentType, body } = await options.metrics.render(request.headers.accept ?? "");
    return reply.header("content-type", contentType).send(body);
  });
  server.get("/healthz", async () => ({ status: "ok" }));
  server.get("/readyz", async (_request, reply) => {
    const reasons = options.notReady();
    return reply.code(reasons.length === 0 ? 200 : 503).send({ ready: reasons.length === 0, reasons });
  });
  options.routes?.(server);
  const host = await firstBindable(options.bind);
  try {
    await server.listen({ host, port: options.port });
  } catch (error) {
    throw portError(options.portFlag, host, options.port, error as Error);
  }
  return {
    host,
    port: (server.server.address() as AddressInfo).port,
    stop: () => server.close(),
  };
}
