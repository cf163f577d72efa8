import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type ErrorDetail, ErrorDetailSchema } from "@weightline/proto/errors";
import { ERROR_CODES, type ErrorCode, isErrorCode, toWeightlineError, WeightlineError } from "../error.ts";

/** Metadata of gRPC answers that carries the ErrorDetail. */
export const ERROR_METADATA = "weightline-error-bin";

/** What an unknown failure is called towards a caller: its own words may hold what is not theirs to know. */
const HIDDEN_MESSAGE = "internal error; the program's log has the cause";

function detailOf(error: WeightlineError) {
  const { code, field, value, limit, wayOut, near } = error;
  return { code, field, value, limit, wayOut, near: [...near] };
}

/** The error as it goes over the wire, by Connect or gRPC. A ConnectError stays what it is: the contract words some itself. */
export function toConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError) {
    return error;
  }
  const known = toWeightlineError(error);
  const message = known.code === "Internal" ? HIDDEN_MESSAGE : known.message;
  const detail = { desc: ErrorDetailSchema, value: detailOf(known) };
  return new ConnectError(message, ERROR_CODES[known.code].rpc, undefined, [detail], known);
}

/** The ErrorDetail as bytes for {@link ERROR_METADATA}, if the error has one. */
export function encodeDetail(error: ConnectError): Uint8Array | undefined {
  const [detail] = error.findDetails(ErrorDetailSchema);
  return detail === undefined ? undefined : toBinary(ErrorDetailSchema, detail);
}

function codeOf(rpcCode: Code): ErrorCode {
  for (const [code, { rpc }] of Object.entries(ERROR_CODES)) {
    if (rpc === rpcCode) {
      return code as ErrorCode;
    }
  }
  return rpcCode === Code.Unauthenticated ? "PermissionDenied" : "Internal";
}

function fromDetail(message: string, rpcCode: Code, detail: ErrorDetail | undefined, cause: unknown): WeightlineError {
  const code = detail !== undefined && isErrorCode(detail.code) ? detail.code : codeOf(rpcCode);
  const { field, value, limit, wayOut, near } = detail ?? {};
  return new WeightlineError(code, message, { field, value, limit, wayOut, near, cause });
}

/** What a client makes of a failed call. */
export function fromRpcError(error: unknown): WeightlineError {
  if (!(error instanceof ConnectError)) {
    return toWeightlineError(error);
  }
  return fromDetail(error.rawMessage, error.code, error.findDetails(ErrorDetailSchema)[0], error);
}

/** The same for gRPC's status and metadata. */
export function fromStatus(
  code: number,
  message: string,
  detail: Uint8Array | undefined,
  cause: unknown,
): ConnectError {
  const decoded = detail === undefined ? undefined : fromBinary(ErrorDetailSchema, detail);
  const details = decoded === undefined ? [] : [{ desc: ErrorDetailSchema, value: decoded }];
  return new ConnectError(message, code as Code, undefined, details, cause);
}
