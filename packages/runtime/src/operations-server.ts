import type { AddressInfo } from "node:net";
import fastify, { type FastifyInstance } from "fastify";
import type { Metrics } from "./metrics.ts";
import { firstBindable, portError } from "./rpc/grpc-server.ts";

export interface OperationsServerOptions {
  /** Addresses to try in order. */
  bind: readonly string[];
  /** 0: any free port. */
  port: number;
  portFlag: string;
  metrics: Metrics;
  /** Reasons why the program cannot do its work now; empty when it can. */
  notReady: () => readonly string[];
  /** Adds routes of the program's own. */
  routes?: (server: FastifyInstance) => void;
}

export interface OperationsServer {
  readonly host: string;
  readonly port: number;
  stop(): Promise<void>;
}

/** HTTP for operators: /metrics, /healthz (the process lives), /readyz (200, or 503 with the reasons). */
export async function createOperationsServer(options: OperationsServerOptions): Promise<OperationsServer> {
  const server = fastify({ forceCloseConnections: true });
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
