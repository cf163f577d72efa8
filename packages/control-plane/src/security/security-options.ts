import {
  checkSecurityFiles,
  type Fault,
  isLoopback,
  type OptionValues,
  option,
  optionTypes,
  SECURITY_OPTIONS,
} from "@weightline/runtime";

const { integer, list, text, toggle } = optionTypes;

const ACCOUNT = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?:[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/;
const MOUNTED = "/var/run/secrets/kubernetes.io/serviceaccount";

function checkAccounts(accounts: readonly string[]): Fault | undefined {
  const wrong = accounts.find((account) => !ACCOUNT.test(account));
  return wrong === undefined
    ? undefined
    : {
        message: `the service account "${wrong}" is not namespace:account`,
        wayOut: "give namespace:account, without wildcards: names are compared as they are",
      };
}

/** A token goes there: nobody on the way may read it. */
function checkUrl(value: string): Fault | undefined {
  const url = URL.parse(value);
  const isSafe = url?.protocol === "https:" || (url?.protocol === "http:" && isLoopback(url.hostname));
  return value === "" || isSafe
    ? undefined
    : { message: `"${value}" is not an https address`, wayOut: "give https://HOST[:PORT]; http only to this machine" };
}

/** The control plane's settings of security: TLS as both daemons have it, and tokens. */
export const CONTROL_PLANE_SECURITY_OPTIONS = {
  ...SECURITY_OPTIONS,
  tokenAudiences: option({
    type: list,
    yaml: "security.token_audiences",
    flag: "--security-token-audiences",
    env: ["MODEL_EXPRESS_SECURITY_TOKEN_AUDIENCES"],
    default: [],
    description: "a token must be for one of these audiences; needed for enforce",
  }),
  allowedAccounts: option({
    type: list,
    yaml: "security.allowed_service_accounts",
    flag: "--security-allowed-service-accounts",
    env: ["MODEL_EXPRESS_SECURITY_ALLOWED_SERVICE_ACCOUNTS"],
    default: [],
    description: "namespace:account of each service account that may call, exactly; needed for enforce",
    check: checkAccounts,
  }),
  operatorAccounts: option({
    type: list,
    yaml: "security.operator_service_accounts",
    flag: "--security-operator-service-accounts",
    env: ["MODEL_EXPRESS_SECURITY_OPERATOR_SERVICE_ACCOUNTS"],
    default: [],
    description: "the same for those that may also have nodes filled (mxctl pull --nodes)",
    check: checkAccounts,
  }),
  securityCacheTtl: option({
    type: integer(0, 86_400),
    yaml: "security.cache_ttl_secs",
    flag: "--security-cache-ttl-secs",
    env: ["MODEL_EXPRESS_SECURITY_CACHE_TTL_SECS"],
    default: 60,
    description: "seconds for which a checked token counts without another check, never past its own end",
  }),
  plaintextTokens: option({
    type: toggle,
    yaml: "security.plaintext_tokens",
    flag: "--security-plaintext-tokens",
    env: ["MODEL_EXPRESS_SECURITY_PLAINTEXT_TOKENS"],
    default: false,
    description:
      "take tokens over connections without TLS too, as stock clients send them; always so without a certificate",
  }),
  jwksFile: option({
    type: text,
    yaml: "security.jwks_file",
    flag: "--security-jwks-file",
    env: ["MODEL_EXPRESS_SECURITY_JWKS_FILE"],
    default: "",
    description:
      "file with the token issuer's public keys (JWKS): tokens are checked by it, and the Kubernetes API is not asked",
  }),
  jwksUrl: option({
    type: text,
    yaml: "security.jwks_url",
    flag: "--security-jwks-url",
    env: ["MODEL_EXPRESS_SECURITY_JWKS_URL"],
    default: "",
    description: "the same from an address, like the Kubernetes API's /openid/v1/jwks",
    check: checkUrl,
  }),
  tokenIssuer: option({
    type: text,
    yaml: "security.token_issuer",
    flag: "--security-token-issuer",
    env: ["MODEL_EXPRESS_SECURITY_TOKEN_ISSUER"],
    default: "",
    description: "what a token must name as its issuer; needed with a JWKS",
  }),
  kubernetesApi: option({
    type: text,
    yaml: "security.kubernetes_api",
    flag: "--security-kubernetes-api",
    env: ["MODEL_EXPRESS_SECURITY_KUBERNETES_API"],
    default: "https://kubernetes.default.svc",
    description: "the Kubernetes API that is asked whose a token is (TokenReview)",
    check: (value) =>
      value === ""
        ? { message: "the Kubernetes API has no address", wayOut: "leave the setting out" }
        : checkUrl(value),
  }),
  kubernetesCaFile: option({
    type: text,
    yaml: "security.kubernetes_ca_file",
    flag: "--security-kubernetes-ca-file",
    env: ["MODEL_EXPRESS_SECURITY_KUBERNETES_CA_FILE"],
    default: `${MOUNTED}/ca.crt`,
    description: "PEM file of the authority that signs the Kubernetes API's certificate",
  }),
  kubernetesTokenFile: option({
    type: text,
    yaml: "security.kubernetes_token_file",
    flag: "--security-kubernetes-token-file",
    env: ["MODEL_EXPRESS_SECURITY_KUBERNETES_TOKEN_FILE"],
    default: `${MOUNTED}/token`,
    description: "file with the control plane's own token towards the Kubernetes API",
  }),
};

/** What the settings of security must be together. */
export function checkSecurity(values: OptionValues<typeof CONTROL_PLANE_SECURITY_OPTIONS>): Fault | undefined {
  if (values.securityMode === "off") {
    return undefined;
  }
  const missing = [
    ...(values.tokenAudiences.length === 0 ? ["security.token_audiences"] : []),
    ...(values.allowedAccounts.length === 0 ? ["security.allowed_service_accounts"] : []),
  ];
  if (missing.length > 0) {
    return {
      message: `security.mode enforce needs ${missing.join(" and ")}`,
      wayOut: "say which audience tokens must have, and which service accounts may call, as namespace:account",
    };
  }
  if (values.jwksFile !== "" && values.jwksUrl !== "") {
    return { message: "security.jwks_file and security.jwks_url are both given", wayOut: "give one of them" };
  }
  if ((values.jwksFile !== "" || values.jwksUrl !== "") && values.tokenIssuer === "") {
    return {
      message: "security.token_issuer is needed with security.jwks_file or security.jwks_url",
      wayOut: "give the iss of the cluster's tokens",
    };
  }
  return checkSecurityFiles(values);
}

/** What an operator must know at each start. */
export function securityWarnings(values: OptionValues<typeof CONTROL_PLANE_SECURITY_OPTIONS>): string[] {
  if (values.securityMode === "off") {
    return [
      "security is off: whoever reaches the port may publish, look up and ask agents to fill",
      ...(values.tlsCertificateFile === "" ? [] : ["security is off: the certificate files are not used"]),
    ];
  }
  if (values.tlsCertificateFile === "") {
    return [
      "there is no certificate (security.tls_certificate_file): tokens come in the clear, and agents cannot prove their nodes, so that no node can announce itself",
    ];
  }
  return values.plaintextTokens
    ? ["tokens are taken over connections without TLS: who can read along can use them (security.plaintext_tokens)"]
    : [];
}
