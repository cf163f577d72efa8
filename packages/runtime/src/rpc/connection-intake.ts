import type { Socket } from "node:net";
import * as grpc from "@grpc/grpc-js";
import { createBoundedLog } from "../bounded-log.ts";
import type { Logger } from "../logging.ts";
import type { Authorize } from "../security/access.ts";
import type { CertificateFiles } from "../security/certificate-files.ts";
import { createSecureIntake } from "../security/secure-intake.ts";
import { authorizationInterceptor, type Refuse } from "./call-authorization.ts";
import type { ConnectionTable } from "./connection-table.ts";

/** How a server lets callers in; without it, everybody may call everything, and there is no TLS. */
export interface ServerSecurity {
  /** Undefined: the port speaks no TLS, and callers have tokens alone. */
  certificates?: CertificateFiles;
  authorize: Authorize;
  log: Logger;
}

/**
 * Connections are asked to come again after so long, when their calls are over: what an authority no longer vouches for
 * does not stay connected by its old handshake.
 */
const MAX_CONNECTION_AGE_MS = 600_000;

/** Options of a grpc-js server whose connections come through {@link takeSecurely}. */
export const SECURE_SERVER_OPTIONS: grpc.ServerOptions = {
  "grpc.max_connection_age_ms": MAX_CONNECTION_AGE_MS,
};

/** Gives each admitted connection to `server` as it is: without TLS, and whoever it is from. */
export function takePlainly(server: grpc.Server, table: ConnectionTable): (socket: Socket) => void {
  const injector = server.createConnectionInjector(grpc.ServerCredentials.createInsecure());
  return (socket) => {
    table.ready(socket);
    injector.injectConnection(socket);
  };
}

/**
 * Gives `server` each admitted connection whose handshake came to its end. grpc-js tells an interceptor of a peer's
 * certificate only by parsing it anew for each call, so each connection gets an interceptor of its own, which knows whose it is.
 */
export function takeSecurely(
  server: grpc.Server,
  table: ConnectionTable,
  security: ServerSecurity,
  refuse: Refuse,
): (socket: Socket) => void {
  const bounded = createBoundedLog(security.log);
  return createSecureIntake({
    certificates: security.certificates,
    onConnection(socket, peer) {
      if (peer.fault !== undefined) {
        bounded(
          "warn",
          { event: "certificate-refused", peer: socket.remoteAddress, error: peer.fault },
          "a client showed a certificate that is not accepted",
        );
      }
      const credentials = grpc.experimental.createServerCredentialsWithInterceptors(
        grpc.ServerCredentials.createInsecure(),
        [authorizationInterceptor(peer, security.authorize, refuse)],
      );
      const connection = server.createConnectionInjector(credentials);
      socket.once("close", () => connection.destroy());
      table.ready(socket);
      connection.injectConnection(socket);
    },
    onFailure: (peer, error) =>
      bounded("info", { event: "handshake-failed", peer, error: error.message }, "a TLS handshake came to nothing"),
  });
}
