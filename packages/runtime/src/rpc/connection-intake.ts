import type { Socket } from "node:net";
import * as grpc from "@grpc/grpc-js";
import { createBoundedLog } from "../bounded-log.ts";
import type { Logger } from "../logging.ts";
import type { Authorize } from "../security/access.ts";
import type { CertificateFiles } from "../security/certificate-files.ts";
import { type ConnectionPeer, createSecureIntake } from "../security/secure-intake.ts";
import { plainTlsWords } from "../security/tls-words.ts";
import { authorizationInterceptor, type Refuse } from "./call-authorization.ts";
import type { ConnectionTable } from "./connection-table.ts";

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
    socket.once("close", () => {
      clearTimeout(timer);
      end();
    });
    table.ready(socket);
    connection.injectConnection(socket);
  };

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
      serve(socket, peer);
    },
    onFailure: (peer, error) =>
      bounded(
        "info",
        { event: "handshake-failed", peer, error: plainTlsWords(error.message) },
        "a TLS handshake came to nothing",
      ),
  });
}
