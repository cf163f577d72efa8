import { readFile } from "node:fs/promises";
import { createLocalJWKSet, createRemoteJWKSet, customFetch, errors, type JWTVerifyGetKey, jwtVerify } from "jose";
import { createHttpApi, type HttpApiOptions } from "./kubernetes-api.ts";
import { accountOf, badToken, cannotCheck, type TokenVerifier } from "./token.ts";

export interface JwksOptions extends HttpApiOptions {
  /** A file with a JSON Web Key Set, or where one is served. */
  keys: { file: string } | { url: URL };
  issuer: string;
  audiences: readonly string[];
}

/** Signatures by a private key alone: whoever has the keys of the set can only check. */
const ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];
/** A key that is no longer in the set counts at most so long. */
const KEYS_MAX_AGE_MS = 60_000;
/** A key that is not in the set is looked for anew at most so often. */
const COOLDOWN_MS = 10_000;
const FETCH_TIMEOUT_MS = 2000;
const WAY_OUT = "try again; see whether the key set can be read (security.jwks_file, security.jwks_url)";

/** Keys of a file, read again when they are old, and soon when a token names another one. */
function keysOfFile(file: string): JWTVerifyGetKey {
  let keys: JWTVerifyGetKey | undefined;
  let readAtMs = 0;
  const read = async (): Promise<JWTVerifyGetKey> => {
    try {
      keys = createLocalJWKSet(JSON.parse(await readFile(file, "utf8")));
    } catch (error) {
      throw cannotCheck("the key set's file cannot be read", WAY_OUT, error);
    }
    readAtMs = performance.now();
    return keys;
  };
  const ageMs = () => performance.now() - readAtMs;
  return async (header, token) => {
    const current = keys === undefined || ageMs() > KEYS_MAX_AGE_MS ? await read() : keys;
    try {
      return await current(header, token);
    } catch (error) {
      if (!(error instanceof errors.JWKSNoMatchingKey) || ageMs() < COOLDOWN_MS) {
        throw error;
      }
      return (await read())(header, token);
    }
  };
}

function keysOfUrl(url: URL, options: HttpApiOptions): { keys: JWTVerifyGetKey; close: () => void } {
  const http = createHttpApi(options);
  const keys = createRemoteJWKSet(url, {
    cooldownDuration: COOLDOWN_MS,
    cacheMaxAge: KEYS_MAX_AGE_MS,
    timeoutDuration: FETCH_TIMEOUT_MS,
    [customFetch]: async (address, { signal }) => {
      const { status, text } = await http.ask(new URL(address), undefined, signal);
      return new Response(text, { status });
    },
  });
  return { keys, close: () => http.close() };
}

/** jose's own words name claims and algorithms; those of a token's content are not passed on. */
function verdict(error: unknown): Error {
  if (error instanceof errors.JWTExpired) {
    return badToken("it has expired");
  }
  if (error instanceof errors.JWTClaimValidationFailed) {
    return badToken(`its claim ${error.claim} is missing or another one`);
  }
  if (error instanceof errors.JWSSignatureVerificationFailed || error instanceof errors.JWKSNoMatchingKey) {
    return badToken("no known key signed it");
  }
  if (
    error instanceof errors.JWTInvalid ||
    error instanceof errors.JWSInvalid ||
    error instanceof errors.JOSEAlgNotAllowed ||
    error instanceof errors.JWKSMultipleMatchingKeys
  ) {
    return badToken("it is no token that can be checked by the key set");
  }
  return cannotCheck("the key set cannot be had", WAY_OUT, error);
}

/** Checks tokens by the issuer's public keys: no question to anybody, but a token that was revoked counts until its end. */
export function createJwksVerifier(options: JwksOptions): TokenVerifier {
  const { keys, close } =
    "file" in options.keys
      ? { keys: keysOfFile(options.keys.file), close: () => undefined }
      : keysOfUrl(options.keys.url, options);
  return {
    async verify(token) {
      const { payload } = await jwtVerify(token, keys, {
        issuer: options.issuer,
        audience: [...options.audiences],
        algorithms: ALGORITHMS,
        requiredClaims: ["exp", "sub", "aud", "iss"],
      }).catch((error: unknown) => {
        throw error instanceof Error && "code" in error && error.code === "Unavailable" ? error : verdict(error);
      });
      return { account: accountOf(payload.sub ?? ""), expiresAtMs: (payload.exp ?? 0) * 1000 };
    },
    close,
  };
}
