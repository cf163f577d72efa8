import { promisify } from "node:util";
import { gunzip, inflate } from "node:zlib";
import { create, type DescMessage, fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { WeightlineError } from "../error.ts";
import type { ReceivedMessage } from "./message-reader.ts";
import { decodingSteps, isLong } from "./message-values.ts";
import { malformedRequest } from "./rpc-error.ts";
import { COMPRESSED_MESSAGE_MAX_BYTES } from "./server-limits.ts";

type Unpacker = (bytes: Buffer, options: { maxOutputLength: number }) => Promise<Buffer>;
const UNPACKERS: ReadonlyMap<string, Unpacker> = new Map([
  ["gzip", promisify(gunzip) as Unpacker],
  ["deflate", promisify(inflate) as Unpacker],
]);

/** A request that is no call of gRPC: its caller's fault, not the server's. */
export function brokenRequest(why: string): WeightlineError {
  return new WeightlineError("InvalidArgument", why, { field: "request" });
}

/** A message that is longer than it may be; known from its prefix, or when it is unpacked. */
export function tooLarge(what: string, maxBytes: number): WeightlineError {
  return new WeightlineError("ResourceExhausted", `${what}; at most ${maxBytes} bytes are taken`, {
    field: "request",
    limit: `${maxBytes} bytes`,
  });
}

async function unpack(bytes: Buffer, encoding: string): Promise<Buffer> {
  if (encoding === "identity") {
    throw brokenRequest("a message says that it is compressed, its call does not say how");
  }
  const unpacker = UNPACKERS.get(encoding);
  if (unpacker === undefined) {
    throw new ConnectError(`messages compressed with ${encoding.slice(0, 20)} are not taken`, Code.Unimplemented);
  }
  try {
    return await unpacker(bytes, { maxOutputLength: COMPRESSED_MESSAGE_MAX_BYTES });
  } catch (error) {
    throw (error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE"
      ? tooLarge("a compressed message is too large when unpacked", COMPRESSED_MESSAGE_MAX_BYTES)
      : brokenRequest(`a message cannot be unpacked: ${error instanceof Error ? error.message : error}`);
  }
}

/** An error of the decoder's, in the caller's words. */
function undecoded(type: DescMessage, error: unknown): Error {
  return error instanceof WeightlineError
    ? error
    : malformedRequest(type.typeName, error instanceof Error ? error.message : String(error));
}

async function decodeLong(type: DescMessage, bytes: Buffer, pause: () => Promise<void>): Promise<unknown> {
  const message = create(type);
  const steps = decodingSteps(type, message, bytes);
  for (;;) {
    let isDone: boolean | undefined;
    try {
      isDone = steps.next().done;
    } catch (error) {
      throw undecoded(type, error);
    }
    if (isDone === true) {
      return message;
    }
    await pause();
  }
}

function decode(type: DescMessage, bytes: Buffer, aside: DecodeAside): unknown | Promise<unknown> {
  if (isLong(bytes)) {
    return aside((pause) => decodeLong(type, bytes, pause));
  }
  try {
    return fromBinary(type, bytes);
  } catch (error) {
    throw undecoded(type, error);
  }
}

/** Runs the decoding of a long message when it may; it awaits `pause` between its steps, whose rejections it passes on. */
export type DecodeAside = (decoding: (pause: () => Promise<void>) => Promise<unknown>) => Promise<unknown>;

/**
 * What the message says; a promise where it is compressed, or long: then it is decoded in steps. Throws or rejects with
 * InvalidArgument and ResourceExhausted.
 */
export function decodeMessage(
  type: DescMessage,
  { isCompressed, bytes }: ReceivedMessage,
  encoding: string,
  aside: DecodeAside,
): unknown | Promise<unknown> {
  return isCompressed
    ? unpack(bytes, encoding).then((unpacked) => decode(type, unpacked, aside))
    : decode(type, bytes, aside);
}
