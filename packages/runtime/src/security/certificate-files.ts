import { readFile } from "node:fs/promises";
import { createSecureContext, type SecureContext } from "node:tls";
import { toWeightlineError } from "../error.ts";
import type { Logger } from "../logging.ts";
import {
  type CertificateRules,
  type Certificates,
  type CertificateTexts,
  checkCertificates,
  contextOptions,
  type NamedFile,
  readNamedFile,
  unreadable,
} from "./certificates.ts";

/** A program's certificates, which follow their files. */
export interface CertificateFiles {
  readonly trustDomain: string;
  /** Those in use now. */
  current(): Certificates;
  /** For outgoing connections; renewed in place when the files change. */
  readonly clientContext: SecureContext;
  /** Told when the files have changed to something usable. */
  onChange(listener: (certificates: Certificates) => void): void;
  stop(): void;
}

export interface CertificateFilesOptions extends CertificateRules {
  log: Logger;
  /** Default 1000. */
  rereadIntervalMs?: number;
}

/** How often the files are read: three small ones, so that links that change places are seen wherever they lie. */
const REREAD_INTERVAL_MS = 1000;

/**
 * Reads the files now (throws InvalidArgument) and again and again. What cannot be used when it has stayed so for two
 * readings is told once, as the event `certificates-kept`, and changes nothing: the three files change one after another.
 */
export function createCertificateFiles(options: CertificateFilesOptions): CertificateFiles {
  const { files, log } = options;
  let texts: CertificateTexts = {
    chain: readNamedFile(files.chain),
    key: readNamedFile(files.key),
    authorities: readNamedFile(files.authorities),
  };
  let certificates = checkCertificates(texts, options);
  const clientContext = createSecureContext(contextOptions(certificates));
  const listeners: Array<(certificates: Certificates) => void> = [];
  let trouble = "";
  let told = "";
  let busy = false;

  const take = (fresh: CertificateTexts) => {
    if (fresh.chain === texts.chain && fresh.key === texts.key && fresh.authorities === texts.authorities) {
      return;
    }
    certificates = checkCertificates(fresh, options);
    texts = fresh;
    clientContext.context = createSecureContext(contextOptions(certificates)).context;
    log.info(
      {
        event: "certificates-renewed",
        file: files.chain.path,
        valid_until: new Date(certificates.validToMs).toISOString(),
      },
      "new connections use the new certificates",
    );
    for (const listener of listeners) {
      listener(certificates);
    }
  };

  const tell = (error: unknown) => {
    const { message } = toWeightlineError(error);
    if (message === trouble && message !== told) {
      told = message;
      log.warn(
        {
          event: "certificates-kept",
          error: message,
          valid_until: new Date(certificates.validToMs).toISOString(),
        },
        "the new certificates cannot be used: the old ones stay",
      );
    }
    trouble = message;
  };

  const reread = async () => {
    const read = (file: NamedFile) =>
      readFile(file.path, "utf8").catch((cause: unknown) => {
        throw unreadable(file, cause);
      });
    try {
      const [chain, key, authorities] = await Promise.all([
        read(files.chain),
        read(files.key),
        read(files.authorities),
      ]);
      take({ chain, key, authorities });
      trouble = "";
      told = "";
    } catch (error) {
      tell(error);
    }
    busy = false;
  };

  const timer = setInterval(() => {
    if (!busy) {
      busy = true;
      void reread();
    }
  }, options.rereadIntervalMs ?? REREAD_INTERVAL_MS).unref();

  return {
    trustDomain: options.trustDomain,
    current: () => certificates,
    clientContext,
    onChange: (listener) => void listeners.push(listener),
    stop: () => clearInterval(timer),
  };
}
