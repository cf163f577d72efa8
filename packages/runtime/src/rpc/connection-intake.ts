import type { Socket } from "node:net";
import { createBoundedLog } from "../bounded-log.ts";
import type { Logger } from "../logging.ts";
import type { Authorize } from "../security/access.ts";
import type { CertificateFiles } from "../security/certificate-files.ts";
import { type ConnectionPeer, createSecureIntake } from "../security/secure-intake.ts";
import { plainTlsWords } from "../security/tls-words.ts";

/** How a server lets callers in; without it, everybody may call everything, and there is no TLS. */
export interface ServerSecurity {
  /** Undefined: the port speaks no TLS, and callers have tokens alone. */
  certificates?: CertificateFiles;
  authorize: Authorize;
  log: Logger;
  /** Default {@link MAX_CONNECTION_AGE_MS}. */
  maxConnectionAgeMs?: number;
}

/** Serves a connection that is ready for HTTP/2; gives what asks it to end when its calls are over. */
export type ServeConnection = (socket: Socket, peer: ConnectionPeer | undefined) => () => void;

/**
 * Connections are asked to come again after so long, when their calls are over: what an authority no longer vouches for
 * does not stay connected by its old handshake.
 */
const MAX_CONNECTION_AGE_MS = 600_000;
/** Up to a tenth later, in so many steps: agents that came together must not all come again together. */
const AGE_STEPS = 20;

/** Has each admitted connection served as it is: without TLS, and whoever it is from. */
export function takePlainly(serve: ServeConnection): (socket: Socket) => void {
  return (socket) => void serve(socket, undefined);
}

/** Has each admitted connection served whose handshake came to its end, with what it tells of its peer. */
export function takeSecurely(serve: ServeConnection, security: ServerSecurity): (socket: Socket) => void {
  const bounded = createBoundedLog(security.log);
  const ageMs = security.maxConnectionAgeMs ?? MAX_CONNECTION_AGE_MS;

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
      const end = serve(socket, peer);
      const laterMs = Math.floor(Math.random() * AGE_STEPS) * (ageMs / 10 / AGE_STEPS);
      const timer = setTimeout(end, ageMs + laterMs).unref();
      socket.once("close", () => clearTimeout(timer));
    },
    onFailure: (peer, error) =>
      bounded(
        "info",
        { event: "handshake-failed", peer, error: plainTlsWords(error.message) },
        "a TLS handshake came to nothing",
      ),
  });
}
