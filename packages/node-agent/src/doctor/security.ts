import { type Check, error, ok, warning } from "./check.ts";

const HOUR_MS = 3_600_000;

/** Whether peers prove who they are. `validToMs`: the end of this node's certificate; undefined: security is off. */
export function securityCheck(validToMs: number | undefined, nowMs = Date.now()): Check {
  if (validToMs === undefined) {
    return warning(
      "security",
      "security is off: whoever reaches this node's ports can read every holding and pose as a node",
      "keep the agents' ports inside the cluster (network policies), or set security.mode to enforce (docs/security.md)",
    );
  }
  const until = new Date(validToMs).toISOString();
  const cure =
    "renew the files of security.tls_certificate_file and security.tls_key_file: they are read by themselves";
  if (validToMs <= nowMs) {
    return error("security", `security is on, and this node's certificate ended at ${until}: nobody lets it in`, cure);
  }
  return validToMs - nowMs < HOUR_MS
    ? warning("security", `security is on; this node's certificate ends soon, at ${until}`, cure)
    : ok("security", `security is on; this node's certificate is valid until ${until}`);
}
