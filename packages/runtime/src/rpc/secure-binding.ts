import type { Socket } from "node:net";
import * as grpc from "@grpc/grpc-js";
import { createBoundedLog } from "../bounded-log.ts";
import type { Logger } from "../logging.ts";
import type { Authorize } from "../security/access.ts";
import type { CertificateFiles } from "../security/certificate-files.ts";
import { type ConnectionPeer, createSecureListener } from "../security/secure-listener.ts";
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
/** Up to a tenth later, in so many steps: agents that came together must not all come again together. */
const AGE_STEPS = 20;

/** Options of a grpc-js server whose connections come through {@link bindSecurely}. */
export const SECURE_SERVER_OPTIONS: grpc.ServerOptions = {
  // It would keep a record for each connection.
  "grpc.enable_channelz": 0,
};

/** What {@link bindSecurely} opened. */
export interface SecureBinding {
  readonly port: number;
  /** Takes no more connections. */
  stop(): void;
  /** Ends those that are left. */
  cut(): void;
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
): Promise<SecureBinding> {
  const bounded = createBoundedLog(security.log);
  const sockets = new Set<Socket>();
  const ageMs = security.maxConnectionAgeMs ?? MAX_CONNECTION_AGE_MS;

  const serve = (socket: Socket, peer: ConnectionPeer) => {
    const credentials = grpc.experimental.createServerCredentialsWithInterceptors(
      grpc.ServerCredentials.createInsecure(),
      [authorizationInterceptor(peer, security.authorize, refuse)],
    );
    const connection = server.createConnectionInjector(credentials);
    // Calls that run go on to their end.
    const end = () => connection.destroy();
    const laterMs = Math.floor(Math.random() * AGE_STEPS) * (ageMs / 10 / AGE_STEPS);
    const timer = setTimeout(end, ageMs + laterMs).unref();
    sockets.add(socket);
    socket.once("close", () => {
      clearTimeout(timer);
      sockets.delete(socket);
      end();
    });
    connection.injectConnection(socket);
  };

  const listener = await createSecureListener({
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
      serve(socket, peer);
    },
    onFailure: (peer, error) =>
      bounded(
        "info",
        { event: "handshake-failed", peer, error: plainTlsWords(error.message) },
        "a TLS handshake came to nothing",
      ),
  });
  return {
    port: listener.port,
    stop: () => listener.stop(),
    cut() {
      for (const socket of sockets) {
        socket.destroy();
      }
    },
  };
}
