import { readFileSync } from "node:fs";
import { formatAddress, type NetworkAddress, WeightlineError } from "@weightline/runtime";

/** Where Redis is and how to be let in; parsed from one text. */
export interface RedisAddress {
  kind: "single" | "sentinel" | "cluster";
  /** One server, or the sentinels', or some of the cluster's nodes. */
  hosts: NetworkAddress[];
  /** A Unix socket in the place of `hosts`. */
  path: string | undefined;
  /** The name that sentinels know the primary by. */
  primary: string | undefined;
  username: string | undefined;
  password: string | undefined;
  database: number;
  tls: boolean;
}

/** What REDIS_URL may look like. */
export const REDIS_URL_FORMS =
  "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// (TLS), unix:///PATH[?db=N], redis-sentinel://HOST:PORT,HOST:PORT/PRIMARY[/DATABASE] or redis-cluster://HOST:PORT,HOST:PORT (rediss-... with TLS)";
const SCHEME = /^(redis|rediss|redis-sentinel|rediss-sentinel|redis-cluster|rediss-cluster|unix|redis\+unix):\/\//;
const PORT = 6379;
const SENTINEL_PORT = 26379;
/** What ends the authority of an address, and so cannot be in a password as it is. */
const MUST_ENCODE = new Map([
  ["@", "%40"],
  ["/", "%2F"],
  ["#", "%23"],
  ["?", "%3F"],
  ["%", "%25"],
  [" ", "%20"],
]);

function refuse(why: string, wayOut: string): never {
  throw new WeightlineError("InvalidArgument", `REDIS_URL: ${why}`, {
    field: "REDIS_URL",
    limit: REDIS_URL_FORMS,
    wayOut,
  });
}

function encodeHint(character: string): never {
  const encoded = MUST_ENCODE.get(character) ?? encodeURIComponent(character);
  return refuse(
    `the user or password holds a raw ${JSON.stringify(character)}, which ends it`,
    `write it as ${encoded} (percent-encoding)`,
  );
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return encodeHint("%");
  }
}

/** Splits "user:password@rest"; tells which raw character spoils a password, without a part of it. */
function splitCredentials(text: string): { credentials: string | undefined; rest: string } {
  const at = text.lastIndexOf("@");
  if (at < 0) {
    return { credentials: undefined, rest: text };
  }
  const credentials = text.slice(0, at);
  const raw = [...credentials].find((character) => character !== "%" && MUST_ENCODE.has(character));
  if (raw !== undefined) {
    encodeHint(raw);
  }
  return { credentials, rest: text.slice(at + 1) };
}

function readHost(text: string, defaultPort: number): NetworkAddress {
  const match = /^(?:\[([0-9a-fA-F:.%]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? defaultPort : Number(match[3]);
  if (host === undefined || port < 1 || port > 65_535) {
    return refuse(`a host of it is not HOST or HOST:PORT (IPv6 in brackets, port 1 to 65535)`, "correct the address");
  }
  return { host, port };
}

function readDatabase(text: string | undefined): number {
  if (text === undefined || text === "") {
    return 0;
  }
  return /^\d{1,4}$/.test(text)
    ? Number(text)
    : refuse("its database is not a number", "write the number after the last /");
}

function readCredentials(credentials: string | undefined): Pick<RedisAddress, "username" | "password"> {
  if (credentials === undefined) {
    return { username: undefined, password: undefined };
  }
  const colon = credentials.indexOf(":");
  const [user, password] =
    colon < 0 ? [credentials, undefined] : [credentials.slice(0, colon), credentials.slice(colon + 1)];
  return {
    username: user === "" ? undefined : decoded(user),
    password: password === undefined || password === "" ? undefined : decoded(password),
  };
}

function readUnix(rest: string): RedisAddress {
  const question = rest.indexOf("?");
  const query = new URLSearchParams(question < 0 ? "" : rest.slice(question + 1));
  const path = decoded(question < 0 ? rest : rest.slice(0, question));
  if (!path.startsWith("/")) {
    refuse("the path of a Unix socket is not absolute", "write unix:///absolute/path");
  }
  return {
    kind: "single",
    hosts: [],
    path,
    primary: undefined,
    username: query.get("user") ?? undefined,
    password: query.get("pass") ?? undefined,
    database: readDatabase(query.get("db") ?? undefined),
    tls: false,
  };
}

/** Parses REDIS_URL. Errors name the variable and the character to encode, and no part of what may be a secret. */
export function parseRedisUrl(text: string): RedisAddress {
  const scheme = SCHEME.exec(text)?.[1];
  if (scheme === undefined) {
    return refuse("it does not begin with a known scheme", `use ${REDIS_URL_FORMS}`);
  }
  const rest = text.slice(scheme.length + 3);
  if (scheme.endsWith("unix")) {
    return readUnix(rest);
  }
  const { credentials, rest: place } = splitCredentials(rest);
  const stray = [...place].find((character) => character === "#" || character === "?" || character === "%");
  if (stray !== undefined) {
    // Without an @ behind it, a raw character of the password has swallowed the host.
    encodeHint(stray);
  }
  const [authority = "", ...path] = place.split("/");
  const kind = scheme.endsWith("sentinel") ? "sentinel" : scheme.endsWith("cluster") ? "cluster" : "single";
  const hosts = authority.split(",").map((host) => readHost(host, kind === "sentinel" ? SENTINEL_PORT : PORT));
  const [primary, database] = kind === "sentinel" ? path : [undefined, path[0]];
  if (kind === "sentinel" && (primary === undefined || primary === "")) {
    refuse("the primary's name is missing", "write redis-sentinel://HOST:PORT,HOST:PORT/PRIMARY");
  }
  if (path.length > (kind === "sentinel" ? 2 : 1)) {
    encodeHint("/");
  }
  if (kind === "single" && hosts.length > 1) {
    refuse("it names several hosts", "use redis-sentinel:// or redis-cluster:// for several");
  }
  if (kind === "cluster" && readDatabase(database) !== 0) {
    refuse("a cluster has no databases but 0", "leave the number out");
  }
  return {
    kind,
    hosts,
    path: undefined,
    primary,
    ...readCredentials(credentials),
    database: readDatabase(database),
    tls: scheme.startsWith("rediss"),
  };
}

/** For logs and metrics: no user, no password. */
export function describeRedis({ kind, hosts, path, primary, tls }: RedisAddress): string {
  const place = path ?? hosts.map(formatAddress).join(",");
  return `${kind === "single" ? "Redis" : `Redis ${kind}`} ${place}${primary === undefined ? "" : ` (${primary})`}${tls ? " with TLS" : ""}`;
}

/** The CA file of a TLS connection, read once; undefined means the system's. */
export function readCa(path: string): string | undefined {
  if (path === "") {
    return undefined;
  }
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new WeightlineError("InvalidArgument", `MODEL_EXPRESS_REDIS_CA_FILE ${path} cannot be read`, {
      field: "MODEL_EXPRESS_REDIS_CA_FILE",
      value: path,
      wayOut: "name a readable PEM file",
      cause: error,
    });
  }
}
