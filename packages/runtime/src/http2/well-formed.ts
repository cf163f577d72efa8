/** What is no token of HTTP (RFC 9110, section 5.6.2), and capitals; the first may be a `:`. */
const FORBIDDEN_IN_NAMES = /^:?$|[^!#$%&'*+\-.^_`|~0-9a-z:]|^.+:/;
/** What would end a line. White space at an end is none either, and is taken: stock clients without a token send "Bearer ". */
const FORBIDDEN_IN_VALUES = /[\0\r\n]/;
const COLON = 58;
/** Of HTTP/1.1's connections (RFC 9113, section 8.2.2). */
const CONNECTION_NAMES: ReadonlySet<string> = new Set([
  "connection",
  "proxy-connection",
  "keep-alive",
  "transfer-encoding",
  "upgrade",
]);

function isField(name: string, value: string): boolean {
  return (
    !FORBIDDEN_IN_NAMES.test(name) &&
    !FORBIDDEN_IN_VALUES.test(value) &&
    !CONNECTION_NAMES.has(name) &&
    (name !== "te" || value === "trailers")
  );
}

/** A bit for each name that a request has at most once; 0 for others. */
function pseudoBit(name: string): number {
  return name === ":method" ? 1 : name === ":path" ? 2 : name === ":scheme" ? 4 : name === ":authority" ? 8 : 0;
}
const NEEDED_BITS = 1 | 2 | 4;

/** Whether names and values, in turn, are those of a request (RFC 9113, section 8.3): names with `:` first, each once. */
export function isRequest(fields: readonly string[]): boolean {
  let seen = 0;
  let isAmongFirst = true;
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i] as string;
    if (!isField(name, fields[i + 1] as string)) {
      return false;
    }
    if (name.charCodeAt(0) === COLON) {
      const bit = pseudoBit(name);
      if (bit === 0 || (seen & bit) !== 0 || !isAmongFirst) {
        return false;
      }
      seen |= bit;
    } else {
      isAmongFirst = false;
    }
  }
  return (seen & NEEDED_BITS) === NEEDED_BITS;
}

/** Whether they are what may follow a request's body. */
export function areTrailers(fields: readonly string[]): boolean {
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i] as string;
    if (name.charCodeAt(0) === COLON || !isField(name, fields[i + 1] as string)) {
      return false;
    }
  }
  return true;
}
