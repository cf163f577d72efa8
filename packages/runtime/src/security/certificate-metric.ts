import type { Metrics } from "../metrics.ts";
import type { CertificateFiles } from "./certificate-files.ts";
import { identityUri } from "./peer-identity.ts";

/** Shows how long a program's certificate is still valid; nothing where security is off. */
export function observeCertificate(metrics: Metrics, certificates: CertificateFiles | undefined): void {
  const seconds = metrics.gauge("weightline_certificate_valid_seconds", "Time until this program's certificate ends", [
    "uri",
  ]);
  if (certificates === undefined) {
    return;
  }
  metrics.onCollect(() => {
    const { owner, validToMs } = certificates.current();
    seconds.set({ uri: identityUri(certificates.trustDomain, owner) }, (validToMs - Date.now()) / 1000);
  });
}
