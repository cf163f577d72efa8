// A gRPC server with limits of a test's own, plain or over TLS, and peers that do with it what they like.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import type { ConnectionOptions } from "node:tls";
import { HealthService } from "@weightline/proto/health";
import {
  createAccess,
  createCertificateFiles,
  createGrpcServer,
  createLogger,
  type GrpcServer,
  type LimitReason,
  route,
  type ServerLimits,
  type ServerSecurity,
} from "@weightline/runtime";
import type { Test } from "tap";
import { createAuthority } from "./certificates.ts";
import { type HostileOptions, type HostilePeer, openHostilePeer } from "./hostile-peer.ts";
import { grpcMessage } from "./http2-frames.ts";

export const GET_HEALTH = `/${HealthService.typeName}/GetHealth`;
export const EMPTY: Buffer = grpcMessage(Buffer.alloc(0));

export interface Limited {
  readonly server: GrpcServer;
  readonly reasons: Array<readonly [LimitReason, string]>;
  peer(options?: HostileOptions): Promise<HostilePeer>;
  /** Lets all calls of the path `Wait` end. */
  letGo(): void;
}

/** What a server speaks with its peers. */
export interface Way {
  readonly name: string;
  readonly security?: ServerSecurity;
  readonly tls?: ConnectionOptions;
}

export const PLAIN: Way = { name: "plain" };

/** A server that lets everybody in over TLS, and how a client speaks with it. */
export function overTls(t: Pick<Test, "teardown">): Way {
  const folder = mkdtempSync(`${tmpdir()}/weightline-limited-server-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const authority = createAuthority(`${folder}/ca`);
  const signed = authority.sign("server", { names: ["URI:spiffe://cluster.local/weightline/control-plane"] });
  const log = createLogger({ program: "test", level: "error", format: "json", file: `${folder}/log` });
  const named = (path: string) => ({ path, setting: "--test" });
  const certificates = createCertificateFiles({
    files: { chain: named(signed.chain), key: named(signed.key), authorities: named(authority.certificate) },
    trustDomain: "cluster.local",
    may: () => undefined,
    log,
  });
  t.teardown(() => certificates.stop());
  const authorize = createAccess({ rules: {}, others: ["anyone"], trustDomain: "cluster.local" });
  return { name: "TLS", security: { certificates, authorize, log }, tls: { rejectUnauthorized: false } };
}

/** A server whose GetHealth answers `replyBytes` of text, once `letGo` was called where `held`. */
export async function limited(
  t: Test,
  { security, tls }: Way,
  limits: Partial<ServerLimits>,
  { replyBytes = 2, held = false, bind = "127.0.0.1" } = {},
): Promise<Limited> {
  const reasons: Array<readonly [LimitReason, string]> = [];
  const gate = Promise.withResolvers<void>();
  if (!held) {
    gate.resolve();
  }
  const server = await createGrpcServer({
    routes: [
      route(HealthService, {
        async getHealth() {
          await gate.promise;
          return { status: "o".repeat(replyBytes) };
        },
      }),
    ],
    bind: [bind],
    port: 0,
    portFlag: "--port",
    limits,
    onLimit: (reason, address) => reasons.push([reason, address]),
    security,
  });
  const peers: HostilePeer[] = [];
  t.teardown(async () => {
    for (const peer of peers) {
      peer.socket.destroy();
    }
    gate.resolve();
    await server.stop(0);
  });
  return {
    server,
    reasons,
    letGo: () => gate.resolve(),
    async peer(options) {
      const peer = await openHostilePeer(server.port, { tls, ...options });
      peers.push(peer);
      return peer;
    },
  };
}

/** It is connected and served. */
export async function isServed(peer: HostilePeer): Promise<boolean> {
  return (await peer.end(peer.call(GET_HEALTH, EMPTY))).status === 0;
}
