/** The static table's fields (RFC 7541, appendix A); the first one's index is 1. */
const STATIC_PAIRS: readonly (readonly [name: string, value: string])[] = [
  [":authority", ""],
  [":method", "GET"],
  [":method", "POST"],
  [":path", "/"],
  [":path", "/index.html"],
  [":scheme", "http"],
  [":scheme", "https"],
  [":status", "200"],
  [":status", "204"],
  [":status", "206"],
  [":status", "304"],
  [":status", "400"],
  [":status", "404"],
  [":status", "500"],
  ["accept-charset", ""],
  ["accept-encoding", "gzip, deflate"],
  ["accept-language", ""],
  ["accept-ranges", ""],
  ["accept", ""],
  ["access-control-allow-origin", ""],
  ["age", ""],
  ["allow", ""],
  ["authorization", ""],
  ["cache-control", ""],
  ["content-disposition", ""],
  ["content-encoding", ""],
  ["content-language", ""],
  ["content-length", ""],
  ["content-location", ""],
  ["content-range", ""],
  ["content-type", ""],
  ["cookie", ""],
  ["date", ""],
  ["etag", ""],
  ["expect", ""],
  ["expires", ""],
  ["from", ""],
  ["host", ""],
  ["if-match", ""],
  ["if-modified-since", ""],
  ["if-none-match", ""],
  ["if-range", ""],
  ["if-unmodified-since", ""],
  ["last-modified", ""],
  ["link", ""],
  ["location", ""],
  ["max-forwards", ""],
  ["proxy-authenticate", ""],
  ["proxy-authorization", ""],
  ["range", ""],
  ["referer", ""],
  ["refresh", ""],
  ["retry-after", ""],
  ["server", ""],
  ["set-cookie", ""],
  ["strict-transport-security", ""],
  ["transfer-encoding", ""],
  ["user-agent", ""],
  ["vary", ""],
  ["via", ""],
  ["www-authenticate", ""],
];

/** The highest index of the static table: those of the dynamic one follow. */
export const STATIC_FIELDS_COUNT = STATIC_PAIRS.length;

/** The static table: name and value of index `i` are at `2 * i - 2` and after it. */
export const STATIC_FIELDS: readonly string[] = STATIC_PAIRS.flat();

/** A name that the static table has. */
export interface StaticName {
  /** The first with this name. */
  readonly index: number;
  /** The indices of its values. */
  readonly values: ReadonlyMap<string, number>;
}

/** The static table by names. */
export const STATIC_NAMES: ReadonlyMap<string, StaticName> = createNames();

function createNames(): Map<string, StaticName> {
  const names = new Map<string, { index: number; values: Map<string, number> }>();
  for (const [at, [name, value]] of STATIC_PAIRS.entries()) {
    const index = at + 1;
    const known = names.get(name) ?? { index, values: new Map() };
    known.values.set(value, index);
    names.set(name, known);
  }
  return names;
}
