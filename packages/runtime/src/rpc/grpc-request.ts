/** What a request's headers say of its call. */
export interface RequestHead {
  /** "POST" of a call. */
  httpMethod: string;
  /** "/package.Service/Method". */
  path: string;
  contentType: string;
  /** As it came; "" when there is none. */
  timeout: string;
  /** What compressed messages are compressed with. */
  encoding: string;
  /** Secret. */
  authorization: readonly string[];
}

const NO_VALUES: readonly string[] = [];

/** Reads names and values in turn. */
export function readRequestHead(fields: readonly string[]): RequestHead {
  const head: RequestHead = {
    httpMethod: "",
    path: "",
    contentType: "",
    timeout: "",
    encoding: "identity",
    authorization: NO_VALUES,
  };
  for (let i = 0; i < fields.length; i += 2) {
    const value = fields[i + 1] as string;
    switch (fields[i]) {
      case ":method":
        head.httpMethod = value;
        break;
      case ":path":
        head.path = value;
        break;
      case "content-type":
        head.contentType = value;
        break;
      case "grpc-timeout":
        head.timeout = value;
        break;
      case "grpc-encoding":
        head.encoding = value;
        break;
      case "authorization":
        head.authorization = [...head.authorization, value];
        break;
    }
  }
  return head;
}

/** gRPC's protocol (PROTOCOL-HTTP2.md, Timeout): at most 8 digits and a unit. */
const TIMEOUT = /^(\d{1,8})([HMSmun])$/;
const UNIT_MS: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 };

/** Ms; Infinity for "", undefined for what is no timeout. */
export function parseTimeout(text: string): number | undefined {
  if (text === "") {
    return Number.POSITIVE_INFINITY;
  }
  const [, digits = "", unit = ""] = TIMEOUT.exec(text) ?? [];
  const unitMs = UNIT_MS[unit];
  return unitMs === undefined ? undefined : Number(digits) * unitMs;
}

/** Names that are the protocol's: no handler sees them. */
const HIDDEN = new Set(["te", "content-type", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding"]);

/**
 * What handlers see of a request's headers, without its token where that was asked for; values of names that end in `-bin`
 * are base64 with its padding, as in Connect.
 */
export function toHeaders(fields: readonly string[], hidesToken: boolean): Headers {
  const headers = new Headers();
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i] as string;
    const value = fields[i + 1] as string;
    if (name.startsWith(":") || HIDDEN.has(name) || (hidesToken && name === "authorization")) {
      continue;
    }
    if (name.endsWith("-bin")) {
      for (const part of value.split(",")) {
        headers.append(name, Buffer.from(part.trim(), "base64").toString("base64"));
      }
    } else {
      headers.append(name, value);
    }
  }
  return headers;
}
