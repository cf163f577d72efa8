import type { EventEmitter } from "node:events";
import { Code, ConnectError } from "@connectrpc/connect";
import type * as grpc from "@grpc/grpc-js";

interface Cancellable extends EventEmitter {
  getDeadline(): grpc.Deadline;
}

/**
 * Tells when a call that streams is over for whoever works for it. An AbortSignal would do the same for forty kilobytes: an
 * agent's stream is open for minutes, and there are thousands of them.
 */
export class CallEnd {
  #reason: unknown;
  readonly #waiting = new Set<() => void>();

  constructor(call: Cancellable) {
    // grpc-js says so of every call, when it has ended too.
    call.on("cancelled", () => {
      if (this.#reason !== undefined) {
        return;
      }
      const isLate = Number(call.getDeadline()) <= Date.now();
      this.end(
        isLate
          ? new ConnectError("the call's deadline is over", Code.DeadlineExceeded)
          : new DOMException("the client gave the call up", "AbortError"),
      );
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
