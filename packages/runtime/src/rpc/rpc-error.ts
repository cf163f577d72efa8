import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type ErrorDetail, ErrorDetailSchema } from "@weightline/proto/errors";
import { ERROR_CODES, type ErrorCode, isErrorCode, toWeightlineError, WeightlineError } from "../error.ts";

/** Metadata of gRPC answers that carries the ErrorDetail. */
export const ERROR_METADATA = "weightline-error-bin";

/** Metadata of failed calls over gRPC and header of answers over HTTP: finds the call in the program's log. */
export const REQUEST_ID_METADATA = "weightline-request-id";

/** What an unknown failure is called towards a caller: its own words may hold what is not theirs to know. */
const HIDDEN_MESSAGE = "internal error; the program's log has the cause";

/** gRPC carries errors in trailers, and stock clients take 8 KiB of those; more costs them the whole connection. */
const GRPC_MESSAGE_MAX_BYTES = 1024;
const GRPC_FIELD_MAX_BYTES = 384;
const GRPC_NEAR_MAX_BYTES = 128;
const GRPC_NEAR_MAX_COUNT = 5;

const ELLIPSIS = "…";

/** The text, or its beginning with an ellipsis where it is longer than `maxBytes` of UTF-8. */
function shortened(text: string, maxBytes: number): string {
  const bytes = Buffer.from(text.slice(0, maxBytes + 1));
  if (bytes.length <= maxBytes) {
    return text;
  }
  // A character that was cut in half decodes to U+FFFD.
  const kept = bytes.subarray(0, maxBytes - Buffer.byteLength(ELLIPSIS)).toString();
  return `${kept.replace(/\uFFFD+$/, "")}${ELLIPSIS}`;
}

/** Half a surrogate pair, as a cut name may end with, cannot be encoded for the wire. */
function detailOf(error: WeightlineError) {
  return {
    code: error.code,
    field: error.field.toWellFormed(),
    value: error.value.toWellFormed(),
    limit: error.limit.toWellFormed(),
    wayOut: error.wayOut.toWellFormed(),
    near: error.near.map((name) => name.toWellFormed()),
  };
}

/**
 * The error as it goes over the wire, by Connect or gRPC. A ConnectError stays what it is: the contract words some itself.
 * `requestId` is what the log has the cause under.
 */
export function toConnectError(error: unknown, requestId = ""): ConnectError {
  if (error instanceof ConnectError) {
    return error;
  }
  const known = toWeightlineError(error);
  const hidden = requestId === "" ? HIDDEN_MESSAGE : `${HIDDEN_MESSAGE} under request ${requestId}`;
  const message = known.code === "Internal" ? hidden : known.message.toWellFormed();
  const detail = { desc: ErrorDetailSchema, value: detailOf(known) };
  return new ConnectError(message, ERROR_CODES[known.code].rpc, undefined, [detail], known);
}

/** The message for gRPC's status. */
export function statusMessage(error: ConnectError): string {
  return shortened(error.rawMessage.toWellFormed(), GRPC_MESSAGE_MAX_BYTES);
}

/** The ErrorDetail as bytes for {@link ERROR_METADATA}, if the error has one. */
export function encodeDetail(error: ConnectError): Uint8Array | undefined {
  const [detail] = error.findDetails(ErrorDetailSchema);
  if (detail === undefined) {
    return undefined;
  }
  const { field, value, limit, wayOut, near } = detail;
  return toBinary(ErrorDetailSchema, {
    ...detail,
    field: shortened(field, GRPC_FIELD_MAX_BYTES),
    value: shortened(value, GRPC_FIELD_MAX_BYTES),
    limit: shortened(limit, GRPC_FIELD_MAX_BYTES),
    wayOut: shortened(wayOut, GRPC_FIELD_MAX_BYTES),
    near: near.slice(0, GRPC_NEAR_MAX_COUNT).map((name) => shortened(name, GRPC_NEAR_MAX_BYTES)),
  });
}

function codeOf(rpcCode: Code): ErrorCode {
  for (const [code, { rpc }] of Object.entries(ERROR_CODES)) {
    if (rpc === rpcCode) {
      return code as ErrorCode;
    }
  }
  return "Internal";
}

function fromDetail(
  message: string,
  rpcCode: Code,
  detail: ErrorDetail | undefined,
  cause: ConnectError,
): WeightlineError {
  const code = detail !== undefined && isErrorCode(detail.code) ? detail.code : codeOf(rpcCode);
  if (detail === undefined && rpcCode === Code.Unimplemented) {
    return new WeightlineError("Refused", `the other side is older and does not have this call: ${message}`, {
      wayOut: "upgrade it",
      cause,
    });
  }
  const { field, value, limit, wayOut, near } = detail ?? {};
  const requestId = cause.metadata.get(REQUEST_ID_METADATA)?.split(",")[0] ?? "";
  return new WeightlineError(code, message, { field, value, limit, wayOut, near, cause, requestId });
}

/** A request whose bytes are no message of its type. */
export function malformedRequest(typeName: string, why: string): WeightlineError {
  return new WeightlineError("InvalidArgument", `the request's bytes are not a ${typeName}: ${why}`, {
    field: "request",
    limit: typeName,
    wayOut: "compare the caller's version of the protocol with this program's",
  });
}

/** What a client makes of a failed call. */
export function fromRpcError(error: unknown): WeightlineError {
  if (!(error instanceof ConnectError)) {
    return toWeightlineError(error);
  }
  return fromDetail(error.rawMessage, error.code, error.findDetails(ErrorDetailSchema)[0], error);
}

/** A peer's bytes; undefined when they are not what they should be. */
function decodeDetail(bytes: Uint8Array | undefined): ErrorDetail | undefined {
  try {
    return bytes === undefined ? undefined : fromBinary(ErrorDetailSchema, bytes);
  } catch {
    return undefined;
  }
}

/** The same for gRPC's status and metadata. A detail that cannot be decoded is passed over: code and message still count. */
export function fromStatus(
  code: number,
  message: string,
  detail: Uint8Array | undefined,
  requestId: string,
  cause: unknown,
): ConnectError {
  const decoded = decodeDetail(detail);
  const details = decoded === undefined ? [] : [{ desc: ErrorDetailSchema, value: decoded }];
  const metadata = requestId === "" ? undefined : { [REQUEST_ID_METADATA]: requestId };
  return new ConnectError(message, code as Code, metadata, details, cause);
}
