import { type Fault, type OptionValues, option } from "../configuration/option.ts";
import { choice, text } from "../configuration/option-types.ts";
import type { Logger } from "../logging.ts";
import { type CertificateFiles, createCertificateFiles } from "./certificate-files.ts";
import type { PeerIdentity } from "./peer-identity.ts";

const TRUST_DOMAIN = /^[a-z0-9._-]{1,255}$/;

function checkTrustDomain(name: string): string | undefined {
  return TRUST_DOMAIN.test(name)
    ? undefined
    : `the trust domain "${name}" must have 1 to 255 of the characters a-z, 0-9, dot, hyphen and underscore`;
}

/** What both daemons say of TLS, by the same names. */
export const SECURITY_OPTIONS = {
  securityMode: option({
    type: choice(["off", "enforce"]),
    yaml: "security.mode",
    flag: "--security-mode",
    env: ["MODEL_EXPRESS_SECURITY_MODE"],
    default: "off",
    description: "off: whoever reaches the port may do everything; enforce: callers prove who they are",
  }),
  tlsCertificateFile: option({
    type: text,
    yaml: "security.tls_certificate_file",
    flag: "--security-tls-certificate-file",
    env: ["MODEL_EXPRESS_SECURITY_TLS_CERTIFICATE_FILE"],
    default: "",
    description: "PEM file of this program's certificate chain, shown to callers and to those that it calls",
  }),
  tlsKeyFile: option({
    type: text,
    yaml: "security.tls_key_file",
    flag: "--security-tls-key-file",
    env: ["MODEL_EXPRESS_SECURITY_TLS_KEY_FILE"],
    default: "",
    description: "PEM file of the certificate's key",
  }),
  tlsCaFile: option({
    type: text,
    yaml: "security.tls_ca_file",
    flag: "--security-tls-ca-file",
    env: ["MODEL_EXPRESS_SECURITY_TLS_CA_FILE"],
    default: "",
    description: "PEM file of the authorities that sign the certificates of agents, control planes and operators",
  }),
  trustDomain: option({
    type: text,
    yaml: "security.trust_domain",
    flag: "--security-trust-domain",
    env: ["MODEL_EXPRESS_SECURITY_TRUST_DOMAIN"],
    default: "cluster.local",
    description: "the name after spiffe:// in every certificate's URI name",
    check: checkTrustDomain,
  }),
};

type SecurityValues = OptionValues<typeof SECURITY_OPTIONS>;

const FILES = {
  tlsCertificateFile: SECURITY_OPTIONS.tlsCertificateFile.flag,
  tlsKeyFile: SECURITY_OPTIONS.tlsKeyFile.flag,
  tlsCaFile: SECURITY_OPTIONS.tlsCaFile.flag,
} as const;

/** The files belong together; undefined when all or none of them are given. */
export function checkSecurityFiles(values: SecurityValues): Fault | undefined {
  const names = Object.keys(FILES) as Array<keyof typeof FILES>;
  const missing = names.filter((name) => values[name] === "").map((name) => FILES[name]);
  return missing.length === 0 || missing.length === names.length
    ? undefined
    : {
        message: `${missing.join(" and ")} must be given too: certificate, key and authorities belong together`,
        wayOut: "give all three files, or none",
      };
}

/** Opens the certificates of settings that have them. Throws InvalidArgument, naming the file. */
export function openCertificates(
  values: SecurityValues,
  may: (owner: PeerIdentity) => string | undefined,
  log: Logger,
): CertificateFiles {
  const named = (name: keyof typeof FILES) => ({ path: values[name], setting: FILES[name] ?? name });
  return createCertificateFiles({
    files: { chain: named("tlsCertificateFile"), key: named("tlsKeyFile"), authorities: named("tlsCaFile") },
    trustDomain: values.trustDomain,
    may,
    log,
  });
}
