import * as grpc from "@grpc/grpc-js";
import { createBoundedLog } from "../bounded-log.ts";
import type { Logger } from "../logging.ts";
import type { Authorize } from "../security/access.ts";
import type { CertificateFiles } from "../security/certificate-files.ts";
import { createSecureListener, type SecureListener } from "../security/secure-listener.ts";
import { plainTlsWords } from "../security/tls-words.ts";
import { authorizationInterceptor, type Refuse } from "./call-authorization.ts";

/** How a server lets callers in; without it, everybody may call everything, and there is no TLS. */
export interface ServerSecurity {
  /** Undefined: the port speaks no TLS, and callers have tokens alone. */
  certificates?: CertificateFiles;
  authorize: Authorize;
  log: Logger;
  /** Default {@link MAX_CONNECTION_AGE_MS}. */
  maxConnectionAgeMs?: number;
}

/**
 * Connections are asked to come again after so long, when their calls are over: what an authority no longer vouches for
 * does not stay connected by its old handshake.
 */
const MAX_CONNECTION_AGE_MS = 600_000;

/** Options of a grpc-js server whose connections come through {@link bindSecurely}. */
export function secureServerOptions({ maxConnectionAgeMs }: ServerSecurity): grpc.ServerOptions {
  return {
    "grpc.max_connection_age_ms": maxConnectionAgeMs ?? MAX_CONNECTION_AGE_MS,
    // It would keep a record for each connection.
    "grpc.enable_channelz": 0,
  };
}

/**
 * Listens for `server`. grpc-js tells an interceptor of a peer's certificate only by parsing it anew for each call, so each
 * connection gets an interceptor of its own, which knows whose it is.
 */
export async function bindSecurely(
  server: grpc.Server,
  address: { host: string; port: number },
  security: ServerSecurity,
  refuse: Refuse,
): Promise<SecureListener> {
  const bounded = createBoundedLog(security.log);
  return createSecureListener({
    ...address,
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
      connection.injectConnection(socket);
    },
    onFailure: (peer, error) =>
      bounded(
        "info",
        { event: "handshake-failed", peer, error: plainTlsWords(error.message) },
        "a TLS handshake came to nothing",
      ),
  });
}
