import { randomBytes } from "node:crypto";
import { Code, ConnectError } from "@connectrpc/connect";
import { createBoundedLog } from "../bounded-log.ts";
import type { Logger } from "../logging.ts";
import { fromRpcError, toConnectError } from "./rpc-error.ts";

/** A served call that failed. */
export interface CallFailure {
  /** "package.Service/Method". */
  method: string;
  /** Code of docs/errors.md. */
  code: string;
  /** What the caller got as well: the metadata or header `weightline-request-id`. */
  requestId: string;
  /** As the handler threw it. */
  error: unknown;
}

const REQUEST_ID_BYTES = 4;
/** Random bytes are fetched so many at once: each fetch costs as much as the rest of a refusal. */
const POOL_BYTES = 1024;
let pool = Buffer.alloc(0);

/** Eight hex digits: enough to find a call in a log, short enough to be read out. */
export function newRequestId(): string {
  if (pool.length === 0) {
    pool = randomBytes(POOL_BYTES);
  }
  const id = pool.toString("hex", 0, REQUEST_ID_BYTES);
  pool = pool.subarray(REQUEST_ID_BYTES);
  return id;
}

/** Code of docs/errors.md; gRPC's own name for those few that only the contract uses. */
function codeOf(error: ConnectError): string {
  const { code } = fromRpcError(error);
  const isFault = error.code === Code.Internal || error.code === Code.Unknown;
  return code === "Internal" && !isFault ? (Code[error.code] ?? code) : code;
}

/** The error as its caller gets it, told to `onFailure`. Who sends it adds the id as `weightline-request-id`. */
export function failCall(
  method: string,
  error: unknown,
  requestId: string,
  onFailure: ((failure: CallFailure) => void) | undefined,
): ConnectError {
  const connectError = toConnectError(error, requestId);
  onFailure?.({ method, code: codeOf(connectError), requestId, error });
  return connectError;
}

/** Logs failed calls as the event `call-failed`: faults of the program with their cause, calls that were given up at debug. */
export function createFailureLog(log: Logger): (failure: CallFailure) => void {
  const write = createBoundedLog(log);
  return ({ method, code, requestId, error }) => {
    const isFault = code === "Internal";
    const level = isFault ? "error" : code === "Cancelled" ? "debug" : "info";
    const words =
      error instanceof ConnectError ? error.rawMessage : error instanceof Error ? error.message : String(error);
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    write(
      level,
      {
        event: "call-failed",
        request: requestId,
        method,
        code,
        error: words,
        ...(isFault && cause instanceof Error ? { stack: cause.stack } : {}),
      },
      "a call failed",
    );
  };
}
