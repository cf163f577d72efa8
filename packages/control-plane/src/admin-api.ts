import { toJson } from "@bufbuild/protobuf";
import { TransferSchema } from "@weightline/proto/common";
import { NodeSchema, SourceSchema } from "@weightline/proto/node";
import type { FastifyInstance } from "fastify";
import type { Directory } from "./directory/directory.ts";
import type { Security } from "./security/security.ts";
import type { Fleet } from "./services/fleet.ts";

/**
 * GET /v1/nodes, /v1/sources, /v1/transfers on the operations port, as proto3 JSON. That port has no TLS and asks nobody who
 * he is: where security is on, they are refused.
 */
export function addAdminApi(server: FastifyInstance, directory: Directory, fleet: Fleet, security: Security): void {
  if (security.server !== undefined) {
    server.get("/v1/*", (_request, reply) =>
      reply.code(403).send({ code: "PermissionDenied", message: "security is on: ask over gRPC, as mxctl does" }),
    );
    return;
  }
  server.get("/v1/nodes", async () => ({ nodes: (await directory.nodes()).map((node) => toJson(NodeSchema, node)) }));
  server.get<{ Querystring: { model?: string } }>("/v1/sources", async ({ query }) => ({
    sources: (await directory.sources(query.model ?? "")).map((source) => toJson(SourceSchema, source)),
  }));
  server.get("/v1/transfers", async () => {
    const { transfers, silentNodes } = await fleet.transfers(0, AbortSignal.timeout(5000));
    return { transfers: transfers.map((transfer) => toJson(TransferSchema, transfer)), silentNodes };
  });
}
