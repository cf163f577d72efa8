import { type ContextKey, createContextKey, type HandlerContext } from "@connectrpc/connect";
import { WeightlineError } from "../error.ts";
import { identityUri, type PeerIdentity } from "./peer-identity.ts";
import type { ConnectionPeer } from "./secure-intake.ts";

/** Who a call is from: a certificate's owner, or the account of a token that was checked. */
export type Caller =
  | PeerIdentity
  | {
      /** `operator-account`: one that may also tell nodes what to hold. */
      readonly kind: "account" | "operator-account";
      /** `namespace:account`. */
      readonly account: string;
    }
  | { readonly kind: "anyone" };

export type CallerKind = Caller["kind"];

/** A call before any of its messages is read. */
export interface CallFacts {
  /** "package.Service/Method". */
  method: string;
  /** Values of the metadata `authorization`. Secret. */
  authorization: readonly string[];
  peer: ConnectionPeer;
}

/** Says who calls, or throws Unauthenticated, PermissionDenied or Unavailable. */
export type Authorize = (call: CallFacts) => Caller | Promise<Caller>;

/** Whose token this is. Throws Unauthenticated, PermissionDenied or Unavailable; never tells the token. */
export type CheckToken = (token: string) => Caller | Promise<Caller>;

export interface AccessOptions {
  /** By "package.Service/Method" or "package.Service"; the method counts more. */
  rules: Readonly<Record<string, readonly CallerKind[]>>;
  /** For what has no rule. */
  others: readonly CallerKind[];
  trustDomain: string;
  /** Undefined: no token is taken. */
  checkToken?: CheckToken;
  /** True: a token may come over a connection without TLS. */
  plaintextTokens?: boolean;
}

/** Who calls, for handlers; undefined while security is off. */
export const CALLER: ContextKey<Caller | undefined> = createContextKey<Caller | undefined>(undefined);

const ANYONE: Caller = { kind: "anyone" };
/** A service account's token has about 1 KiB. */
const TOKEN_MAX_BYTES = 16 * 1024;
/** Of a name that a caller made up. */
const SHOWN_MAX = 100;
const BEARER = /^Bearer +([A-Za-z0-9._~+/=-]+)$/i;

function unauthenticated(message: string, field: string, wayOut: string): WeightlineError {
  return new WeightlineError("Unauthenticated", message, { field, wayOut });
}

/** The token of the one value that there may be; undefined when there is none. */
function tokenOf(values: readonly string[]): string | undefined {
  const [value] = values;
  if (value === undefined) {
    return undefined;
  }
  const [, token] = value.length > TOKEN_MAX_BYTES ? [] : (BEARER.exec(value) ?? []);
  if (values.length !== 1 || token === undefined) {
    throw unauthenticated(
      "the metadata authorization is not one value `Bearer TOKEN`",
      "authorization",
      `give one token of at most ${TOKEN_MAX_BYTES} bytes`,
    );
  }
  return token;
}

/** For errors; never a token. */
export function describeCaller(caller: Caller, trustDomain: string): string {
  switch (caller.kind) {
    case "anyone":
      return "anybody";
    case "account":
    case "operator-account":
      return `service account ${caller.account}`;
    default:
      return identityUri(trustDomain, caller);
  }
}

function denied(method: string, caller: Caller, kinds: readonly CallerKind[], trustDomain: string): WeightlineError {
  const who = describeCaller(caller, trustDomain);
  return new WeightlineError("PermissionDenied", `${who} may not call ${method}`, {
    field: "caller",
    value: who,
    limit: kinds.join(", "),
    wayOut: "docs/security.md tells who may call what",
  });
}

/** Decides by rules who may call what. A certificate counts before a token. */
export function createAccess(options: AccessOptions): Authorize {
  const { rules, others, trustDomain, checkToken } = options;
  const ruleOf = (method: string) => rules[method] ?? rules[method.slice(0, method.indexOf("/"))] ?? others;

  const byToken = (method: string, kinds: readonly CallerKind[], token: string): Caller | Promise<Caller> => {
    const allow = (caller: Caller) => {
      if (!kinds.includes(caller.kind)) {
        throw denied(method, caller, kinds, trustDomain);
      }
      return caller;
    };
    const caller = (checkToken as CheckToken)(token);
    return caller instanceof Promise ? caller.then(allow) : allow(caller);
  };

  return ({ method, authorization, peer }) => {
    const kinds = ruleOf(method);
    if (kinds.includes("anyone")) {
      return ANYONE;
    }
    if (peer.fault !== undefined) {
      throw unauthenticated(
        `the client's certificate is not accepted: ${peer.fault}`,
        "certificate",
        "give a certificate as docs/security.md tells, or none and a token",
      );
    }
    if (peer.identity !== undefined && kinds.includes(peer.identity.kind)) {
      return peer.identity;
    }
    const token = checkToken === undefined ? undefined : tokenOf(authorization);
    if (token !== undefined && !peer.encrypted && options.plaintextTokens !== true) {
      throw unauthenticated(
        "a token came over a connection without TLS, and is not taken here",
        "authorization",
        "use TLS, or let the control plane take such tokens (security.plaintext_tokens)",
      );
    }
    if (token !== undefined) {
      return byToken(method, kinds, token);
    }
    if (peer.identity !== undefined) {
      throw denied(method, peer.identity, kinds, trustDomain);
    }
    throw unauthenticated(
      peer.encrypted
        ? `${method} needs ${checkToken === undefined ? "a client certificate" : "a client certificate or a token"}`
        : `${method} needs TLS and a client certificate${checkToken === undefined ? "" : ", or a token"}`,
      checkToken === undefined ? "certificate" : "authorization",
      "docs/security.md tells how callers prove who they are",
    );
  };
}

/** Throws PermissionDenied when a call that came by a certificate speaks of another node than that certificate's. */
export function checkSpeaksFor(context: HandlerContext, node: string, trustDomain: string): void {
  const caller = context.values.get(CALLER);
  if (caller?.kind === "node" && caller.name === node) {
    return;
  }
  const who = caller === undefined ? "nobody" : describeCaller(caller, trustDomain);
  const shown = node.slice(0, SHOWN_MAX);
  throw new WeightlineError("PermissionDenied", `${who} does not speak for node ${shown}`, {
    field: "node",
    value: shown,
    limit: who,
    wayOut: `use the certificate of ${identityUri(trustDomain, { kind: "node", name: shown })}`,
  });
}
