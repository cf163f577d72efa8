import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer as createHttps } from "node:https";
import type { AddressInfo } from "node:net";
import { type CryptoKey, generateKeyPair, jwtVerify, SignJWT } from "jose";
import { type Authority, readSigned } from "../../../test/support/certificates.ts";

export const ISSUER = "https://kubernetes.default.svc";
export const USER = "system:serviceaccount:ns:one";
export const rsa = await generateKeyPair("RS256");
export const ec = await generateKeyPair("ES256");

/** What a token says; a good one of {@link USER} for weightline by default. */
export interface TokenFacts {
  sub?: string;
  aud?: string | string[];
  expS?: number;
  iss?: string;
  algorithm?: "RS256" | "ES256";
  kid?: string;
  key?: CryptoKey;
}

let serial = 0;

/** A token that no other one equals. */
export function signToken({
  sub = USER,
  aud = "weightline",
  expS = 600,
  iss = ISSUER,
  algorithm = "RS256",
  kid,
  key,
}: TokenFacts = {}) {
  const nowS = Math.floor(Date.now() / 1000);
  return new SignJWT({ jti: String(serial++) })
    .setProtectedHeader({ alg: algorithm, kid: kid ?? algorithm })
    .setSubject(sub)
    .setAudience(aud)
    .setIssuer(iss)
    .setIssuedAt(nowS)
    .setExpirationTime(nowS + expS)
    .sign(key ?? (algorithm === "RS256" ? rsa : ec).privateKey);
}

/** The Kubernetes API as far as it is asked. */
export interface Api {
  url: URL;
  reviews: Array<{ spec: { token: string; audiences: string[] } }>;
  authorizations: Array<string | undefined>;
  /** Answers a review; by default the token is good for its first audience. */
  answer: (reply: ServerResponse, review: { spec: { token: string; audiences: string[] } }) => void;
  stop(): void;
}

export const send = (reply: ServerResponse, status: number, body: unknown) =>
  void reply.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
/** Takes any token. */
export const goodReview = (reply: ServerResponse, { spec }: { spec: { audiences: string[] } }, username = USER) =>
  send(reply, 201, {
    kind: "TokenReview",
    status: { authenticated: true, user: { username }, audiences: spec.audiences.slice(0, 1) },
  });

/** Takes what was signed by {@link rsa}, as the account that it names. */
export const honestReview: Api["answer"] = (reply, { spec }) => {
  jwtVerify(spec.token, rsa.publicKey, { audience: spec.audiences }).then(
    ({ payload }) => goodReview(reply, { spec }, payload.sub),
    () => send(reply, 201, { kind: "TokenReview", status: { authenticated: false, error: "not this one" } }),
  );
};

/** Serves over HTTPS until the test ends. */
export async function startApi(authority: Authority, t: { teardown(end: () => void): void }): Promise<Api> {
  const api: Omit<Api, "url" | "stop"> = { reviews: [], authorizations: [], answer: goodReview };
  const serve = async (request: IncomingMessage, reply: ServerResponse) => {
    let text = "";
    for await (const part of request) {
      text += part;
    }
    api.authorizations.push(request.headers.authorization);
    if (request.url !== "/apis/authentication.k8s.io/v1/tokenreviews" || request.method !== "POST") {
      send(reply, 404, {});
      return;
    }
    const review = JSON.parse(text);
    api.reviews.push(review);
    api.answer(reply, review);
  };
  const signed = authority.sign("api", { names: ["IP:127.0.0.1", "DNS:kubernetes"] });
  const server = createHttps(readSigned(signed), (request, reply) => void serve(request, reply));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const stop = () => {
    server.closeAllConnections();
    server.close();
  };
  t.teardown(stop);
  return Object.assign(api, { url: new URL(`https://127.0.0.1:${(server.address() as AddressInfo).port}`), stop });
}
