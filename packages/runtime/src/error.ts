import { Code } from "@connectrpc/connect";

/**
 * Every error code of the product: what it means, its RPC code (Connect's and gRPC's are the same numbers), and the exit
 * code of a command that fails with it. docs/errors.md has a heading for each.
 */
export const ERROR_CODES = {
  NotFound: { rpc: Code.NotFound, exit: 3, meaning: "What was asked for is held by nobody, or does not exist." },
  Unavailable: { rpc: Code.Unavailable, exit: 4, meaning: "A program, peer or disk does not answer now." },
  DeadlineExceeded: { rpc: Code.DeadlineExceeded, exit: 1, meaning: "It took longer than was allowed." },
  Refused: { rpc: Code.FailedPrecondition, exit: 1, meaning: "The input or the state does not allow it." },
  InvalidArgument: { rpc: Code.InvalidArgument, exit: 2, meaning: "The request itself is wrong." },
  PermissionDenied: { rpc: Code.PermissionDenied, exit: 5, meaning: "This caller may not do that." },
  Unauthenticated: { rpc: Code.Unauthenticated, exit: 5, meaning: "The caller did not prove who it is." },
  ResourceExhausted: {
    rpc: Code.ResourceExhausted,
    exit: 1,
    meaning: "A limit is reached: memory, connections, size.",
  },
  Corrupt: { rpc: Code.DataLoss, exit: 1, meaning: "Bytes are not what their digest or format says." },
  InUse: { rpc: Code.Aborted, exit: 6, meaning: "Somebody uses it." },
  AlreadyExists: { rpc: Code.AlreadyExists, exit: 6, meaning: "It is there already, and different." },
  Cancelled: { rpc: Code.Canceled, exit: 1, meaning: "The caller gave up, or the program stops." },
  Internal: { rpc: Code.Internal, exit: 1, meaning: "A fault of the program itself; its log has the cause." },
} as const satisfies Record<string, { rpc: Code; exit: number; meaning: string }>;

/** A stable error code. */
export type ErrorCode = keyof typeof ERROR_CODES;

/** What an error tells beside its sentence. */
export interface ErrorFacts {
  /** What was wrong, in the caller's own words: a flag, a request field, a file. */
  field?: string | undefined;
  /** The value found there. Never a secret. */
  value?: string | undefined;
  /** What would have been accepted. */
  limit?: string | undefined;
  /** What the reader can do now. */
  wayOut?: string | undefined;
  /** Names close to one that was not found. */
  near?: readonly string[] | undefined;
  /** What led to it; goes to the log, never to a caller. */
  cause?: unknown;
  /** Of a call that failed at another program: what that program's log has it under. */
  requestId?: string | undefined;
}

/** The one error class of the product's own failures. `message` is a whole sentence without its way out. */
export class WeightlineError extends Error {
  override readonly name = "WeightlineError";
  readonly code: ErrorCode;
  readonly field: string;
  readonly value: string;
  readonly limit: string;
  readonly wayOut: string;
  readonly near: readonly string[];
  readonly requestId: string;

  constructor(code: ErrorCode, message: string, facts: ErrorFacts = {}) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.code = code;
    this.field = facts.field ?? "";
    this.value = facts.value ?? "";
    this.limit = facts.limit ?? "";
    this.wayOut = facts.wayOut ?? "";
    this.near = facts.near ?? [];
    this.requestId = facts.requestId ?? "";
  }
}

/** True for a code of the table. */
export function isErrorCode(code: unknown): code is ErrorCode {
  return typeof code === "string" && Object.hasOwn(ERROR_CODES, code);
}

/** The shape that native errors share with ours. */
interface ErrorLike {
  code: ErrorCode;
  message: string;
  field?: string;
  value?: string;
  limit?: string;
  wayOut?: string;
}

function isErrorLike(error: unknown): error is ErrorLike {
  return error instanceof Error && "code" in error && isErrorCode(error.code);
}

/** Any thrown value as one of ours: an error that carries one of our codes keeps it, all else is Internal with its cause. */
export function toWeightlineError(error: unknown): WeightlineError {
  if (error instanceof WeightlineError) {
    return error;
  }
  if (isErrorLike(error)) {
    const { field, value, limit, wayOut } = error;
    return new WeightlineError(error.code, error.message, { field, value, limit, wayOut, cause: error });
  }
  if (error instanceof Error && error.name === "AbortError") {
    return new WeightlineError("Cancelled", "the call was cancelled", { cause: error });
  }
  const message = error instanceof Error ? error.message : String(error);
  return new WeightlineError("Internal", `internal error: ${message}`, { cause: error });
}

/** One line for people: the sentence, what is near, and the way out. */
export function describeError(error: unknown): string {
  const known = toWeightlineError(error);
  const near = known.near.length > 0 ? `; near: ${known.near.join(", ")}` : "";
  const wayOut = known.wayOut === "" ? "" : `; way out: ${known.wayOut}`;
  return `${known.message}${near}${wayOut}`;
}
