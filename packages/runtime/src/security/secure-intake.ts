import type { Socket } from "node:net";
import { createServer, type TLSSocket } from "node:tls";
import type { CertificateFiles } from "./certificate-files.ts";
import { contextOptions } from "./certificates.ts";
import { identityOf, type PeerIdentity } from "./peer-identity.ts";

/** What a connection tells of who is at its other end. */
export interface ConnectionPeer {
  /** False: whoever is on the way can read along. */
  readonly encrypted: boolean;
  /** Whom its certificate names, when it showed one that is good. */
  readonly identity?: PeerIdentity;
  /** Why the certificate that it showed counts for nothing. */
  readonly fault?: string;
}

export interface SecureIntakeOptions {
  /** Undefined: there is no TLS on this port. */
  certificates: CertificateFiles | undefined;
  /** A connection that is ready for HTTP/2. */
  onConnection: (socket: Socket | TLSSocket, peer: ConnectionPeer) => void;
  /** A TLS handshake that came to nothing. */
  onFailure: (peer: string, error: Error) => void;
}

/** The first byte of a TLS record with a handshake in it; HTTP/2's preface begins with a P. */
const TLS_HANDSHAKE = 0x16;
/** setTimeout takes no more. */
const TIMER_MAX_MS = 2 ** 31 - 1;

const PLAIN: ConnectionPeer = { encrypted: false };

const FAULTS: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "it has expired",
  CERT_NOT_YET_VALID: "it is not valid yet",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "no authority that is known here signed it",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "no authority that is known here signed it",
  UNABLE_TO_GET_ISSUER_CERT: "no authority that is known here signed it",
  SELF_SIGNED_CERT_IN_CHAIN: "no authority that is known here signed it",
  DEPTH_ZERO_SELF_SIGNED_CERT: "it is signed by itself alone",
  INVALID_PURPOSE: "it is not made for clients (extended key usage)",
};

/** Node sets the code, which its types call an Error. */
function verifyFault(error: unknown): string {
  const code = error instanceof Error ? error.message : String(error);
  return FAULTS[code] ?? code;
}

function peerOf(socket: TLSSocket, trustDomain: string): { peer: ConnectionPeer; validToMs: number } {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) {
    return { peer: { encrypted: true }, validToMs: Number.POSITIVE_INFINITY };
  }
  const validToMs = certificate.validToDate.getTime();
  if (!socket.authorized) {
    return { peer: { encrypted: true, fault: verifyFault(socket.authorizationError) }, validToMs };
  }
  return { peer: { encrypted: true, ...identityOf(certificate.subjectAltName, trustDomain) }, validToMs };
}

/** No connection outlives the certificate by which it was let in. */
function endAt(socket: TLSSocket, validToMs: number): void {
  const leftMs = validToMs - Date.now();
  if (!Number.isFinite(leftMs) || leftMs <= 0) {
    return;
  }
  const timer = setTimeout(
    () => (validToMs <= Date.now() ? socket.destroy() : endAt(socket, validToMs)),
    Math.min(leftMs, TIMER_MAX_MS),
  ).unref();
  socket.once("close", () => clearTimeout(timer));
}

/** Those that TLS is spoken on; `take` gives it a connection. */
function createTls(files: CertificateFiles, { onConnection, onFailure }: SecureIntakeOptions) {
  const server = createServer({
    ...contextOptions(files.current()),
    requestCert: true,
    // What is wrong with a certificate is told in words, to each call: a closed connection tells nobody anything.
    rejectUnauthorized: false,
    ALPNProtocols: ["h2"],
  });
  files.onChange((fresh) => server.setSecureContext(contextOptions(fresh)));
  server.on("secureConnection", (socket) => {
    const { peer, validToMs } = peerOf(socket, files.trustDomain);
    endAt(socket, validToMs);
    onConnection(socket, peer);
  });
  server.on("tlsClientError", (error, socket) => onFailure(socket.remoteAddress ?? "", error));
  return (socket: Socket) => void server.emit("connection", socket);
}

/** Takes accepted connections that speak TLS or nothing of it, which their first byte tells apart. Who is slow is for its caller. */
export function createSecureIntake(options: SecureIntakeOptions): (socket: Socket) => void {
  const { certificates, onConnection } = options;
  const takeTls = certificates === undefined ? undefined : createTls(certificates, options);
  return (socket) => {
    const end = () => void socket.destroy();
    socket.on("error", end);
    socket.once("readable", () => {
      const first: Buffer | null = socket.read(1);
      if (first === null) {
        end();
        return;
      }
      socket.unshift(first);
      if (first[0] !== TLS_HANDSHAKE) {
        onConnection(socket, PLAIN);
      } else if (takeTls === undefined) {
        end();
      } else {
        takeTls(socket);
      }
    });
  };
}
