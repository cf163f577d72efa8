import { Code, ConnectError } from "@connectrpc/connect";
import type { GrpcCall } from "./grpc-call.ts";

/** What a call ends with whose time is over, or whose client gave it up. */
export function cancelReason(isLate: boolean): Error {
  return isLate
    ? new ConnectError("the call's deadline is over", Code.DeadlineExceeded)
    : new DOMException("the client gave the call up", "AbortError");
}

/**
 * Tells when a call that streams is over for whoever works for it. An AbortSignal would do the same for forty kilobytes: an
 * agent's stream is open for minutes, and there are thousands of them.
 */
export class CallEnd {
  #reason: unknown;
  readonly #waiting = new Set<() => void>();

  constructor(call: GrpcCall) {
    call.onCancelled((isLate) => {
      if (this.#reason === undefined) {
        this.end(cancelReason(isLate));
      }
    });
  }

  /** The call is over, for this reason; the first one holds. */
  end(reason: unknown): void {
    this.#reason ??= reason;
    for (const wake of this.#waiting) {
      wake();
    }
  }

  throwIfOver(): void {
    if (this.#reason !== undefined) {
      throw this.#reason;
    }
  }

  /** Calls back when the call is over; gives what takes that back. */
  onEnd(wake: () => void): () => void {
    this.#waiting.add(wake);
    return () => this.#waiting.delete(wake);
  }
}
