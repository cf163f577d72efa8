/** Who a certificate of ours names, by its one URI SAN. docs/security.md has the forms. */
export type PeerIdentity =
  | { readonly kind: "node"; readonly name: string }
  | { readonly kind: "control-plane" }
  | { readonly kind: "operator"; readonly name: string };

/** A URI SAN's path segment, as SPIFFE allows them. */
const NAME = /^[A-Za-z0-9._-]{1,253}$/;

const DOTS = /^\.{1,2}$/;

/** Node writes what is not plain as a JSON string: a comma inside a name cannot pass for the next name. */
const ALTERNATIVE_NAME = /(?:^|, )([A-Za-z ]+):("(?:[^"\\]|\\.)*"|[^,"]*)/y;

/** True for a name that a certificate can carry. */
export function isCertifiableName(name: string): boolean {
  return NAME.test(name) && !DOTS.test(name);
}

/** `spiffe://TRUST-DOMAIN/weightline/node/NAME`, `.../weightline/control-plane`, `.../weightline/operator/NAME`. */
export function identityUri(trustDomain: string, identity: PeerIdentity): string {
  const rest = identity.kind === "control-plane" ? "control-plane" : `${identity.kind}/${identity.name}`;
  return `spiffe://${trustDomain}/weightline/${rest}`;
}

/** The URI SANs in a certificate's `subjectAltName`, as Node writes it; undefined when the text is of no known form. */
function uriNames(subjectAltName: string): string[] | undefined {
  const uris: string[] = [];
  ALTERNATIVE_NAME.lastIndex = 0;
  let end = 0;
  for (
    let match = ALTERNATIVE_NAME.exec(subjectAltName);
    match !== null;
    match = ALTERNATIVE_NAME.exec(subjectAltName)
  ) {
    const [, kind = "", value = ""] = match;
    if (kind === "URI") {
      uris.push(value);
    }
    end = ALTERNATIVE_NAME.lastIndex;
  }
  return end === subjectAltName.length ? uris : undefined;
}

function parseUri(uri: string, trustDomain: string): PeerIdentity | undefined {
  const prefix = `spiffe://${trustDomain}/weightline/`;
  if (!uri.startsWith(prefix)) {
    return undefined;
  }
  const [kind = "", name = "", ...more] = uri.slice(prefix.length).split("/");
  if (kind === "control-plane") {
    return uri === `${prefix}control-plane` ? { kind } : undefined;
  }
  const known = kind === "node" || kind === "operator";
  return known && more.length === 0 && isCertifiableName(name) ? { kind, name } : undefined;
}

/** Whom a verified certificate names, or why it names nobody of ours. */
export function identityOf(
  subjectAltName: string | undefined,
  trustDomain: string,
): { identity: PeerIdentity; fault?: never } | { identity?: never; fault: string } {
  const uris = uriNames(subjectAltName ?? "");
  const [uri] = uris ?? [];
  if (uris === undefined) {
    return { fault: "its alternative names cannot be read" };
  }
  if (uri === undefined || uris.length !== 1) {
    return { fault: `it has ${uris.length} URI names, and must have exactly one` };
  }
  const identity = parseUri(uri, trustDomain);
  return identity === undefined
    ? { fault: `its URI name ${JSON.stringify(uri.slice(0, 300))} is none of trust domain ${trustDomain}` }
    : { identity };
}

/** True when both are the same. */
export function sameIdentity(a: PeerIdentity, b: PeerIdentity): boolean {
  return identityUri("", a) === identityUri("", b);
}
