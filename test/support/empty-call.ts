import { type ClientHttp2Session, connect as connectHttp2, constants } from "node:http2";
import { connect, type SecureContext } from "node:tls";
import type { NetworkAddress } from "@weightline/runtime";

/** By what a call proves whose it is. */
export interface Proof {
  /** Undefined: no TLS. */
  context?: SecureContext | undefined;
  token?: string | undefined;
}

function openSession({ host, port }: NetworkAddress, context: SecureContext | undefined): ClientHttp2Session {
  if (context === undefined) {
    return connectHttp2(`http://${host}:${port}`);
  }
  return connectHttp2(`https://${host}:${port}`, {
    createConnection: () =>
      connect({ host, port, secureContext: context, rejectUnauthorized: false, ALPNProtocols: ["h2"] }),
  });
}

/** The gRPC status of a call without a message, for methods whose requests are streams. `path` like "/package.Service/Method". */
export async function emptyCallStatus(address: NetworkAddress, path: string, proof: Proof): Promise<number> {
  const session = openSession(address, proof.context);
  try {
    return await new Promise<number>((resolve, reject) => {
      session.on("error", reject);
      const stream = session.request({
        [constants.HTTP2_HEADER_METHOD]: "POST",
        [constants.HTTP2_HEADER_PATH]: path,
        [constants.HTTP2_HEADER_CONTENT_TYPE]: "application/grpc",
        te: "trailers",
        ...(proof.token === undefined ? {} : { authorization: `Bearer ${proof.token}` }),
      });
      const take = (headers: Record<string, unknown>) => {
        if (headers["grpc-status"] !== undefined) {
          resolve(Number(headers["grpc-status"]));
        }
      };
      stream.on("response", take);
      stream.on("trailers", take);
      stream.on("error", reject);
      stream.on("close", () => reject(new Error(`the call ended without a status: ${stream.rstCode}`)));
      stream.resume();
      stream.end();
    });
  } finally {
    session.destroy();
  }
}
