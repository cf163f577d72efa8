import { WeightlineError } from "@weightline/runtime";
import { decodeJwt, type JWTPayload } from "jose";

/** A token that was checked. */
export interface VerifiedToken {
  /** `namespace:account`. */
  account: string;
  /** Unix ms; Infinity when it does not say. */
  expiresAtMs: number;
}

/**
 * Checks tokens. Throws Unauthenticated for one that is not good, Unavailable when it cannot be known now; never with the
 * token in its words.
 */
export interface TokenVerifier {
  verify(token: string, signal: AbortSignal): Promise<VerifiedToken>;
  close(): void;
}

/** How Kubernetes calls a service account as a user. */
const SERVICE_ACCOUNT = /^system:serviceaccount:([a-z0-9.-]{1,253}):([a-z0-9.-]{1,253})$/;

/** `namespace:account` of a user's name. Throws PermissionDenied for a user that is no service account. */
export function accountOf(user: string): string {
  const [, namespace, account] = SERVICE_ACCOUNT.exec(user) ?? [];
  if (namespace === undefined || account === undefined) {
    throw new WeightlineError("PermissionDenied", "the token is that of no service account", {
      field: "authorization",
      value: user.slice(0, 100),
      wayOut: "use a service account's token",
    });
  }
  return `${namespace}:${account}`;
}

export function badToken(why: string, wayOut = "get a fresh token of one of the audiences", cause?: unknown) {
  return new WeightlineError("Unauthenticated", `the token is not accepted: ${why}`, {
    field: "authorization",
    wayOut,
    cause,
  });
}

export function cannotCheck(why: string, wayOut: string, cause?: unknown): WeightlineError {
  return new WeightlineError("Unavailable", `the token cannot be checked now: ${why}`, {
    field: "authorization",
    wayOut,
    cause,
  });
}

/** What a token says of itself, unproved; undefined for one that is no JWT. */
export function claimsOf(token: string): JWTPayload | undefined {
  try {
    return decodeJwt(token);
  } catch {
    return undefined;
  }
}

/** Unix ms at which a token says it ends. */
export function expiryOf(claims: JWTPayload | undefined): number {
  return claims?.exp === undefined ? Number.POSITIVE_INFINITY : claims.exp * 1000;
}
