import { constants, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext, type PeerCertificate, type SecureContext, type SecureContextOptions } from "node:tls";
import { WeightlineError } from "../error.ts";
import { identityOf, identityUri, type PeerIdentity, sameIdentity } from "./peer-identity.ts";

/** A file and the setting that names it, for errors. */
export interface NamedFile {
  path: string;
  setting: string;
}

/** What a program shows of itself, and what it checks others with. PEM. */
export interface Certificates {
  /** The program's own chain, the leaf first. */
  readonly chain: string;
  /** Secret. */
  readonly key: string;
  /** Every certificate that may have signed another program's. */
  readonly authorities: string;
  /** Unix ms. */
  readonly validToMs: number;
  readonly owner: PeerIdentity;
}

/** The texts of the three files, as they were read together. */
export interface CertificateTexts {
  chain: string;
  key: string;
  authorities: string;
}

/** What the texts must be; `may` says why an owner is not the right one. */
export interface CertificateRules {
  files: { chain: NamedFile; key: NamedFile; authorities: NamedFile };
  trustDomain: string;
  may: (owner: PeerIdentity) => string | undefined;
}

const BLOCK = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g;

const READ_FAULTS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  EACCES: "this user may not read it",
  EISDIR: "it is a folder",
};

function unusable({ path, setting }: NamedFile, why: string, wayOut: string): WeightlineError {
  return new WeightlineError("InvalidArgument", `${setting} ${path} cannot be used: ${why}`, {
    field: setting,
    value: path,
    wayOut,
  });
}

/** Why a file could not be read, in words. */
export function unreadable(file: NamedFile, cause: unknown): WeightlineError {
  const { code = "", message } = cause as NodeJS.ErrnoException;
  return unusable(file, READ_FAULTS[code] ?? message, "give a file that this user may read");
}

/** A small file that a setting names. Throws InvalidArgument. */
export function readNamedFile(file: NamedFile): string {
  try {
    return readFileSync(file.path, "utf8");
  } catch (cause) {
    throw unreadable(file, cause);
  }
}

function parseAll(text: string, file: NamedFile): X509Certificate[] {
  const blocks = text.match(BLOCK) ?? [];
  try {
    if (blocks.length > 0) {
      return blocks.map((block) => new X509Certificate(block));
    }
  } catch {
    // OpenSSL's words name its own routines; the file is no certificate either way.
  }
  throw unusable(file, "it has no PEM certificate that can be read", "give a file with BEGIN CERTIFICATE blocks");
}

/** The authorities of a file, checked. Throws InvalidArgument. */
export function checkAuthorities(text: string, file: NamedFile): string {
  const now = Date.now();
  if (parseAll(text, file).every(({ validToDate }) => validToDate.getTime() <= now)) {
    throw unusable(file, "all of its certificates have expired", "give the authority that is used now");
  }
  return text;
}

/** TLS 1.3 alone, and no session that could be resumed: a resumed one would pass by the check of the certificate. */
export function contextOptions(certificates: {
  authorities: string;
  chain?: string;
  key?: string;
}): SecureContextOptions {
  const { authorities, chain, key } = certificates;
  return {
    ca: authorities,
    ...(chain === undefined ? {} : { cert: chain }),
    ...(key === undefined ? {} : { key }),
    minVersion: "TLSv1.3",
    secureOptions: constants.SSL_OP_NO_TICKET,
  };
}

/** Checks what the files hold: readable, in time, of each other, and of the right owner. Throws InvalidArgument. */
export function checkCertificates(texts: CertificateTexts, rules: CertificateRules): Certificates {
  const { files, trustDomain } = rules;
  const [leaf] = parseAll(texts.chain, files.chain);
  checkAuthorities(texts.authorities, files.authorities);
  const validToMs = leaf?.validToDate.getTime() ?? 0;
  if (leaf === undefined || validToMs <= Date.now()) {
    throw unusable(files.chain, `it expired at ${leaf?.validToDate.toISOString()}`, "renew it");
  }
  try {
    createSecureContext(contextOptions(texts));
  } catch {
    // The cause's words may quote what they were about.
    throw unusable(
      files.key,
      `it is no unencrypted PEM key, or not that of ${files.chain.path}`,
      "give the key that the certificate was made for",
    );
  }
  const { identity: owner, fault } = identityOf(leaf.subjectAltName, trustDomain);
  const wrong = owner === undefined ? fault : rules.may(owner);
  if (owner === undefined || wrong !== undefined) {
    throw unusable(files.chain, wrong ?? "", "docs/security.md tells what a certificate must name");
  }
  return { ...texts, validToMs, owner };
}

/** What a channel needs to speak TLS. */
export interface ChannelTls {
  /** May be renewed in place: a new connection uses what it holds then. */
  context: SecureContext;
  /** Looks at the certificate that the other side showed, which is signed rightly; gives what is wrong with it. */
  checkPeer(certificate: PeerCertificate): Error | undefined;
}

/** A channel to the one that has this identity, and to nobody else. */
export function channelTo(context: SecureContext, trustDomain: string, expected: PeerIdentity): ChannelTls {
  return {
    context,
    checkPeer({ subjectaltname }) {
      const { identity, fault } = identityOf(subjectaltname, trustDomain);
      const wanted = identityUri(trustDomain, expected);
      if (identity === undefined) {
        return new Error(`the other side's certificate is not that of ${wanted}: ${fault}`);
      }
      return sameIdentity(identity, expected)
        ? undefined
        : new Error(`the other side's certificate is that of ${identityUri(trustDomain, identity)}, not of ${wanted}`);
    },
  };
}
