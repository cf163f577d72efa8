import type { IncomingMessage, ServerResponse } from "node:http";
import { encodeEnvelope } from "@connectrpc/connect/protocol";
import {
  codeToHttpStatus,
  contentTypeUnaryJson,
  endStreamFlag,
  endStreamToJson,
  errorToJsonBytes,
  parseContentType,
} from "@connectrpc/connect/protocol-connect";
import { toConnectError } from "./rpc-error.ts";

export interface Answer {
  readonly status: number;
  readonly contentType: string;
  readonly body: Uint8Array;
}

/** How a unary call is answered with an error. */
export function unaryAnswer(error: unknown): Answer {
  const known = toConnectError(error);
  return {
    status: codeToHttpStatus(known.code),
    contentType: contentTypeUnaryJson,
    body: errorToJsonBytes(known, undefined),
  };
}

/** What a stream ends with; undefined: all is well. */
export function streamEnd(error: unknown): Uint8Array {
  const known = error === undefined ? undefined : toConnectError(error);
  const end = endStreamToJson(new Headers(), known, undefined);
  return encodeEnvelope(endStreamFlag, Buffer.from(JSON.stringify(end)));
}

/** The end of a stream that went well: always the same. */
export const STREAM_ENDED_WELL = streamEnd(undefined);

/** A refusal's content types that are remembered: those that clients send are few. */
const REFUSAL_FORMS_MAX = 8;
/** By error and content type: one that many calls are refused with is put in words once. */
const refusals = new WeakMap<Error, Map<string, Answer>>();

function refusalAnswer(error: Error, contentType: string): Answer {
  const known = refusals.get(error) ?? new Map<string, Answer>();
  refusals.set(error, known);
  const stream = parseContentType(contentType)?.stream === true;
  const key = stream ? contentType : "";
  const answer = known.get(key) ?? (stream ? { status: 200, contentType, body: streamEnd(error) } : unaryAnswer(error));
  if (known.size < REFUSAL_FORMS_MAX) {
    known.set(key, answer);
  }
  return answer;
}

/** Sends an answer whole. */
export function send(response: ServerResponse, { status, contentType, body }: Answer): void {
  // With its length: HTTP/1.0 has no other way to tell where it ends on a connection that stays.
  response.writeHead(status, { "content-type": contentType, "content-length": body.length });
  response.end(body);
}

/** Answers a call with an error before anything else has seen it; its body is not kept. */
export function refuseLocalCall(request: IncomingMessage, response: ServerResponse, error: Error): void {
  send(response, refusalAnswer(error, request.headers["content-type"] ?? ""));
  request.resume();
}
