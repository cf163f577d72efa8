import { create, type DescMethod, type MessageShape } from "@bufbuild/protobuf";
import type * as grpc from "@grpc/grpc-js";
import { drained } from "./drained.ts";

type Message = MessageShape<DescMethod["input"]>;
type Call = grpc.ClientDuplexStream<Message, Message>;

/** The messages that a caller streams. Until a reply came they may go to another call from the first one on. */
export class RequestStream {
  readonly #method: DescMethod;
  readonly #messages: AsyncIterator<unknown>;
  /** What would have to be sent again; undefined once a reply came. */
  #kept: Message[] | undefined = [];
  #call: Call | undefined;
  #isReading = false;
  #isOver = false;

  constructor(method: DescMethod, messages: AsyncIterable<unknown>) {
    this.#method = method;
    this.#messages = messages[Symbol.asyncIterator]();
  }

  /** All messages go to this call from now on, those too that went to another. */
  sendTo(call: Call): void {
    this.#call = call;
    for (const message of this.#kept ?? []) {
      call.write(message);
    }
    if (this.#isOver) {
      call.end();
    } else if (!this.#isReading) {
      this.#isReading = true;
      void this.#read();
    }
  }

  /** The call that has them replied: they are not kept any more. */
  settle(): void {
    this.#kept = undefined;
  }

  /** Nobody reads replies any more. */
  end(): void {
    this.#isOver = true;
    this.#call = undefined;
    void this.#messages.return?.().catch(() => undefined);
  }

  async #read(): Promise<void> {
    try {
      for (let next = await this.#messages.next(); !next.done && !this.#isOver; next = await this.#messages.next()) {
        const message = create(this.#method.input, next.value as Message);
        this.#kept?.push(message);
        const call = this.#call;
        if (call?.write(message) === false) {
          await drained(call);
        }
      }
      this.#isOver = true;
      this.#call?.end();
    } catch {
      // Who streams half a request must not look as if it were whole.
      this.#isOver = true;
      this.#call?.cancel();
    }
  }
}
