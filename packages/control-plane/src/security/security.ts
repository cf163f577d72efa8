import type { HandlerContext } from "@connectrpc/connect";
import {
  type Caller,
  type CertificateFiles,
  type ChannelTls,
  channelTo,
  checkSpeaksFor,
  createAccess,
  createBoundedLog,
  identityUri,
  type Logger,
  openCertificates,
  type ServerSecurity,
  toWeightlineError,
  WeightlineError,
} from "@weightline/runtime";
import type { ControlPlaneConfiguration } from "../configuration.ts";
import { CONTROL_PLANE_RULES, OTHER_SERVICES } from "./access-rules.ts";
import { createJwksVerifier } from "./jwks.ts";
import type { TokenVerifier, VerifiedToken } from "./token.ts";
import { createTokenCache } from "./token-cache.ts";
import { createTokenReview } from "./token-review.ts";

/** What the control plane checks of its callers, and shows to agents. */
export interface Security {
  /** Undefined: off. */
  readonly server: ServerSecurity | undefined;
  /** For the channel to a node's agent; undefined: plain. */
  channelToNode(name: string): ChannelTls | undefined;
  /** Throws PermissionDenied when the caller is another than the node that it speaks of. */
  checkNode(context: HandlerContext, node: string): void;
  close(): void;
}

export interface SecurityOptions {
  configuration: ControlPlaneConfiguration;
  log: Logger;
  /** Told of every token that was checked, not of answers from memory. */
  onTokenCheck: (outcome: string, seconds: number) => void;
}

const MS_PER_SECOND = 1000;

const OFF: Security = {
  server: undefined,
  channelToNode: () => undefined,
  checkNode: () => undefined,
  close: () => undefined,
};

function createVerifier(configuration: ControlPlaneConfiguration): TokenVerifier {
  const { jwksFile, jwksUrl, tokenIssuer, tokenAudiences, kubernetesApi, kubernetesCaFile, kubernetesTokenFile } =
    configuration;
  const api = new URL(kubernetesApi);
  const ofKubernetes = { caFile: kubernetesCaFile, tokenFile: kubernetesTokenFile };
  if (jwksFile === "" && jwksUrl === "") {
    return createTokenReview({ api, audiences: tokenAudiences, ...ofKubernetes });
  }
  // The API's own token is for nobody else.
  const isApi = jwksUrl !== "" && new URL(jwksUrl).origin === api.origin;
  return createJwksVerifier({
    keys: jwksFile === "" ? { url: new URL(jwksUrl) } : { file: jwksFile },
    issuer: tokenIssuer,
    audiences: tokenAudiences,
    ...(isApi ? ofKubernetes : { caFile: "", tokenFile: "" }),
  });
}

/** Tells the operator why tokens cannot be checked; callers get fewer words. */
function logged(verifier: TokenVerifier, log: Logger): TokenVerifier {
  const bounded = createBoundedLog(log);
  return {
    async verify(token, signal) {
      try {
        return await verifier.verify(token, signal);
      } catch (error) {
        const { code, message, cause } = toWeightlineError(error);
        if (code === "Unavailable") {
          const why = cause instanceof Error ? cause.message : "";
          bounded("warn", { event: "tokens-unchecked", error: message, cause: why }, "a token could not be checked");
        }
        throw error;
      }
    },
    close: () => verifier.close(),
  };
}

/** Which caller a good token is. Throws PermissionDenied for an account that is on no list. */
function createAllowlist({ allowedAccounts, operatorAccounts }: ControlPlaneConfiguration) {
  const callers = new Map<string, Caller>();
  for (const [accounts, kind] of [
    [allowedAccounts, "account"],
    [operatorAccounts, "operator-account"],
  ] as const) {
    for (const account of accounts) {
      callers.set(account, { kind, account });
    }
  }
  return ({ account }: VerifiedToken): Caller => {
    const caller = callers.get(account);
    if (caller === undefined) {
      throw new WeightlineError("PermissionDenied", `service account ${account} is not allowed here`, {
        field: "authorization",
        value: account,
        wayOut: "add it to security.allowed_service_accounts, as namespace:account",
      });
    }
    return caller;
  };
}

/** Opens what the settings name. Throws InvalidArgument, naming the setting. */
export function createSecurity({ configuration, log, onTokenCheck }: SecurityOptions): Security {
  if (configuration.securityMode === "off") {
    return OFF;
  }
  const { trustDomain } = configuration;
  const certificates: CertificateFiles | undefined =
    configuration.tlsCertificateFile === ""
      ? undefined
      : openCertificates(
          configuration,
          (owner) =>
            owner.kind === "control-plane"
              ? undefined
              : `it is that of ${identityUri(trustDomain, owner)}, not of ${identityUri(trustDomain, { kind: "control-plane" })}`,
          log,
        );
  const verifier = logged(createVerifier(configuration), log);
  const cache = createTokenCache({
    verifier,
    ttlMs: configuration.securityCacheTtl * MS_PER_SECOND,
    onCheck: onTokenCheck,
  });
  const callerOf = createAllowlist(configuration);
  const authorize = createAccess({
    rules: CONTROL_PLANE_RULES,
    others: OTHER_SERVICES,
    trustDomain,
    plaintextTokens: configuration.plaintextTokens || certificates === undefined,
    checkToken: (token) => {
      const verified = cache.check(token);
      return verified instanceof Promise ? verified.then(callerOf) : callerOf(verified);
    },
  });
  return {
    server: { authorize, log, ...(certificates === undefined ? {} : { certificates }) },
    channelToNode: (name) =>
      certificates === undefined
        ? undefined
        : channelTo(certificates.clientContext, trustDomain, { kind: "node", name }),
    checkNode: (context, node) => checkSpeaksFor(context, node, trustDomain),
    close() {
      certificates?.stop();
      verifier.close();
    },
  };
}
