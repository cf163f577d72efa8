import type { IncomingMessage } from "node:http";
import { Code, ConnectError } from "@connectrpc/connect";
import { WeightlineError } from "../error.ts";

/** What is before a message of a stream: its flags and its length. */
const ENVELOPE_BYTES = 5;

/** The caller left before its request was whole. */
function leftEarly(cause?: unknown): WeightlineError {
  return new WeightlineError("Cancelled", "the caller left in the middle of its request", { cause });
}

function tooLarge(bytes: number, maxBytes: number): WeightlineError {
  return new WeightlineError("ResourceExhausted", `the message has more than ${maxBytes} bytes`, {
    field: "message",
    value: `${bytes} bytes`,
    limit: `${maxBytes}`,
    wayOut: "send a smaller one",
  });
}

/** The whole body. Rejects when it is larger than `maxBytes`, or the caller leaves; what still comes is thrown away then. */
export function readBody(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    let bytes = 0;
    let isOver = false;
    const fail = (error: () => Error) => {
      if (!isOver) {
        isOver = true;
        request.off("data", take);
        request.resume();
        reject(error());
      }
    };
    const take = (piece: Buffer) => {
      pieces.push(piece);
      bytes += piece.length;
      if (bytes > maxBytes) {
        fail(() => tooLarge(bytes, maxBytes));
      }
    };
    request.on("data", take);
    request.once("end", () => {
      isOver = true;
      const [first] = pieces;
      resolve(pieces.length === 1 && first !== undefined ? first : Buffer.concat(pieces));
    });
    // Whoever serves HTTP listens for errors as well.
    request.once("error", (error) => fail(() => leftEarly(error)));
    request.once("close", () => fail(leftEarly));
  });
}

/** The most bytes that a body may have whose message has at most so many. */
export function bodyMaxBytes(maxMessageBytes: number, isStream: boolean): number {
  return maxMessageBytes + (isStream ? ENVELOPE_BYTES : 0);
}

/** The one message of a stream's request. Throws with what is wrong, for who words it. */
export function openEnvelope(body: Buffer): Buffer {
  if (body.length < ENVELOPE_BYTES) {
    throw new Error(`${body.length} bytes are no enveloped message`);
  }
  const flags = body.readUInt8(0);
  const bytes = body.readUInt32BE(1);
  const message = body.subarray(ENVELOPE_BYTES);
  if (flags !== 0) {
    throw new Error(`its envelope has the flags ${flags}, where a message that is not compressed has 0`);
  }
  if (bytes !== message.length) {
    throw new Error(`its envelope tells of ${bytes} bytes, and ${message.length} follow`);
  }
  return message;
}

/** Throws for a body that is compressed: that would take longer than a Unix socket. */
export function checkEncoding(request: IncomingMessage, isStream: boolean): void {
  const name = isStream ? "connect-content-encoding" : "content-encoding";
  const encoding = request.headers[name] ?? "identity";
  if (encoding !== "identity") {
    throw new ConnectError(`${name} ${encoding} is not known; send it as it is`, Code.Unimplemented);
  }
}
