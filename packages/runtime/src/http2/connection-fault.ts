import type { Reason } from "./frames.ts";

/** A client broke the protocol: its connection ends, and is told why. */
export class ConnectionFault extends Error {
  readonly reason: Reason;

  constructor(reason: Reason, message: string) {
    super(message);
    this.reason = reason;
  }
}
