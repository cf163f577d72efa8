import { hash } from "node:crypto";
import { toWeightlineError, type WeightlineError } from "@weightline/runtime";
import { badToken, cannotCheck, type TokenVerifier, type VerifiedToken } from "./token.ts";

export interface TokenCacheOptions {
  verifier: TokenVerifier;
  /** How long a good token counts without being checked again; never past its own end. 0: each call checks. */
  ttlMs: number;
  /** Told of every check, not of answers from memory: the outcome is "good" or an error's code. */
  onCheck?: (outcome: string, seconds: number) => void;
  /** Wall clock in Unix ms, for tests. */
  now?: () => number;
}

/** Answers at once for tokens that were checked a short time ago. */
export interface TokenCache {
  /** Throws, or rejects, as {@link TokenVerifier} does. Callers with the same token share one check. */
  check(token: string): VerifiedToken | Promise<VerifiedToken>;
  /** Good and bad ones that are remembered. */
  readonly size: number;
}

/** Of each kind, good and bad: strangers' inventions never push out what is good. */
export const REMEMBERED_TOKENS_MAX = 10_000;
/** Checks at the same time; more would only wait for the API. */
export const TOKEN_CHECKS_MAX = 256;
const CHECK_TIMEOUT_MS = 3000;
/** A token that is refused is not asked for again so soon; one that could not be checked sooner. */
const BAD_TTL_MS = 5000;
const UNKNOWN_TTL_MS = 500;

interface Remembered<Value> {
  value: Value;
  /** On the monotonic clock. */
  untilMs: number;
}

/** The oldest goes when there are too many. */
function remember<Value>(into: Map<string, Remembered<Value>>, key: string, value: Value, ttlMs: number): void {
  into.delete(key);
  into.set(key, { value, untilMs: performance.now() + ttlMs });
  const oldest = into.keys().next().value;
  if (into.size > REMEMBERED_TOKENS_MAX && oldest !== undefined) {
    into.delete(oldest);
  }
}

/** Remembers what `verifier` said, by the tokens' digests: no token stays in memory. */
export function createTokenCache({ verifier, ttlMs, onCheck, now = Date.now }: TokenCacheOptions): TokenCache {
  const good = new Map<string, Remembered<VerifiedToken>>();
  const bad = new Map<string, Remembered<WeightlineError>>();
  const running = new Map<string, Promise<VerifiedToken>>();

  const verify = async (key: string, token: string): Promise<VerifiedToken> => {
    const startedMs = performance.now();
    const told = (outcome: string) => onCheck?.(outcome, (performance.now() - startedMs) / 1000);
    try {
      const verified = await verifier.verify(token, AbortSignal.timeout(CHECK_TIMEOUT_MS));
      if (verified.expiresAtMs <= now()) {
        throw badToken("it has expired");
      }
      if (ttlMs > 0) {
        remember(good, key, verified, ttlMs);
      }
      told("good");
      return verified;
    } catch (error) {
      const known = toWeightlineError(error);
      good.delete(key);
      remember(bad, key, known, known.code === "Unavailable" ? UNKNOWN_TTL_MS : BAD_TTL_MS);
      told(known.code);
      throw known;
    } finally {
      running.delete(key);
    }
  };

  return {
    check(token) {
      const key = hash("sha256", token, "base64");
      const nowMs = performance.now();
      const known = good.get(key);
      if (known !== undefined && known.untilMs > nowMs && known.value.expiresAtMs > now()) {
        return known.value;
      }
      const refused = bad.get(key);
      if (refused !== undefined && refused.untilMs > nowMs) {
        throw refused.value;
      }
      let check = running.get(key);
      if (check === undefined) {
        if (running.size >= TOKEN_CHECKS_MAX) {
          throw cannotCheck(`${TOKEN_CHECKS_MAX} others are being checked`, "try again");
        }
        check = verify(key, token);
        running.set(key, check);
      }
      return check;
    },
    get size() {
      return good.size + bad.size;
    },
  };
}
