import { createSecureContext, type SecureContext } from "node:tls";
import {
  channelTo,
  checkAuthorities,
  contextOptions,
  createGrpcChannel,
  type GrpcChannel,
  type NamedFile,
  readNamedFile,
} from "@weightline/runtime/channels";
import { type NetworkAddress, WeightlineError } from "@weightline/runtime/client";
import type { CredentialFiles, Settings } from "./settings.ts";

function invalid(field: string, message: string, wayOut: string): WeightlineError {
  return new WeightlineError("InvalidArgument", message, { field, wayOut });
}

function contextOf(ca: NamedFile, { cert, key }: CredentialFiles): SecureContext {
  if ((cert === undefined) !== (key === undefined)) {
    const given = cert?.setting ?? key?.setting ?? "";
    const missing = cert === undefined ? "--cert" : "--key";
    throw invalid(given, `${given} is given without ${missing}`, "give both, or neither");
  }
  const authorities = checkAuthorities(readNamedFile(ca), ca);
  if (cert === undefined || key === undefined) {
    return createSecureContext(contextOptions({ authorities }));
  }
  const own = { chain: readNamedFile(cert), key: readNamedFile(key) };
  try {
    return createSecureContext(contextOptions({ authorities, ...own }));
  } catch {
    // The cause's words may quote what they were about.
    throw invalid(
      key.setting,
      `${cert.setting} ${cert.path} and ${key.setting} ${key.path} are no PEM certificate and its key`,
      "give the certificate's own unencrypted key",
    );
  }
}

/** A channel to the control plane: over TLS when an authority is given, with certificate and token as they are given. */
export function openControlPlane(settings: Settings, addresses: readonly NetworkAddress[]): GrpcChannel {
  const { files, trustDomain, timeoutMs } = settings;
  const { ca, cert, key, token } = files;
  const plain = { addresses, defaultTimeoutMs: timeoutMs };
  if (ca === undefined) {
    const [alone] = [cert, key, token].filter((file) => file !== undefined);
    if (alone !== undefined) {
      throw invalid(
        alone.setting,
        `${alone.setting} is given without --ca`,
        "give --ca: what proves you goes over TLS alone",
      );
    }
    return createGrpcChannel(plain);
  }
  const tls = channelTo(contextOf(ca, files), trustDomain, { kind: "control-plane" });
  return createGrpcChannel({ ...plain, tls, token: token === undefined ? undefined : readNamedFile(token).trim() });
}
