import { setImmediate } from "node:timers/promises";
import { cancelReason } from "./call-end.ts";
import type { Peer } from "./connection-table.ts";
import type { GrpcCall } from "./grpc-call.ts";
import type { DecodeAside } from "./received-message.ts";

/** Of all peers together: what is decoded in part may be a hundred times what came, and is in nobody's budget. */
const AT_ONCE_COUNT = 2;

/**
 * Lets few long messages be decoded at a time: one of a peer, and few of all. The others wait as the bytes that they came
 * as, which are counted, each peer's in their order. All at once they would go on in step, and each would be nearly whole in
 * memory before the first is answered.
 */
export class LongDecodes {
  readonly #lastOf = new WeakMap<Peer, Promise<void>>();
  readonly #waiting: Array<() => void> = [];
  #runningCount = 0;

  /** Gives what decodes a call's messages, between whose steps `takeTurn` waits for a turn that is the call's. */
  of(call: GrpcCall, takeTurn: (call: GrpcCall, start: () => void) => void): DecodeAside {
    const goOn = () => {
      if (call.isOver) {
        throw cancelReason(call.isLate());
      }
    };
    const pause = async () => {
      await setImmediate();
      await new Promise<void>((resolve) => takeTurn(call, resolve));
      goOn();
    };
    return async (decoding) => {
      const { peer } = call.connection;
      const before = this.#lastOf.get(peer);
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#lastOf.set(peer, promise);
      try {
        await before;
        goOn();
        await this.#enter();
        try {
          goOn();
          return await decoding(pause);
        } finally {
          this.#leave();
        }
      } finally {
        resolve();
      }
    };
  }

  async #enter(): Promise<void> {
    if (this.#runningCount < AT_ONCE_COUNT) {
      this.#runningCount += 1;
      return;
    }
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Hands its place on, if one waits. */
  #leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) {
      this.#runningCount -= 1;
    } else {
      next();
    }
  }
}
