import { encodeHeaders } from "../http2/header-encoder.ts";

/** gRPC's status of a call, and metadata that go with it. */
export interface GrpcStatus {
  /** gRPC's number; 0 is OK. */
  readonly code: number;
  readonly details: string;
  /** Names in lower case; values of names that end in `-bin` are base64. */
  readonly metadata?: ReadonlyArray<readonly [name: string, value: string]>;
}

const CONTENT: readonly [string, string] = ["content-type", "application/grpc+proto"];

/** What every reply begins with. */
export const REPLY_HEAD: Buffer = encodeHeaders([
  [":status", "200"],
  CONTENT,
  ["grpc-accept-encoding", "identity,deflate,gzip"],
]);

/** What every reply that is one message ends with. */
export const OK_TRAILERS: Buffer = encodeHeaders([["grpc-status", "0"]]);

/** What HTTP itself answers to a request that is no call of gRPC. */
export function httpStatus(status: number): Buffer {
  return encodeHeaders([[":status", String(status)]]);
}

const PERCENT = 0x25;
/** All but ASCII without %; a space that begins or ends a value makes it none to HTTP/2 (RFC 9113, section 8.2.1). */
const NEEDS_ENCODING = /[^\x20-\x24\x26-\x7e]|^ | $/;

/** As gRPC's protocol has it (PROTOCOL-HTTP2.md, Percent-Encoded): bytes of UTF-8. */
function percentEncoded(text: string): string {
  if (!NEEDS_ENCODING.test(text)) {
    return text;
  }
  let encoded = "";
  for (const byte of Buffer.from(text)) {
    const isPlain = byte > 0x20 && byte <= 0x7e && byte !== PERCENT;
    encoded += isPlain ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }
  return encoded;
}

function fieldsOf({ code, details, metadata = [] }: GrpcStatus): Array<readonly [string, string]> {
  const message: Array<readonly [string, string]> = details === "" ? [] : [["grpc-message", percentEncoded(details)]];
  return [["grpc-status", String(code)], ...message, ...metadata];
}

/** The end of a reply that has begun. */
export function trailersOf(status: GrpcStatus): Buffer {
  return encodeHeaders(fieldsOf(status));
}

/** A whole reply that is nothing but a status. */
export function statusOnly(status: GrpcStatus): Buffer {
  return encodeHeaders([[":status", "200"], CONTENT, ...fieldsOf(status)]);
}
