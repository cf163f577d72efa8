import type { ContextValues, HandlerContext } from "@connectrpc/connect";

type Controlled = HandlerContext & { abort(reason?: unknown): void };

/** What the signal of a call that is over was aborted with; one for all, since an error is dear to make. */
export const CALL_OVER = new Error("the call is over");

/**
 * A call's context, made only when its handler looks into it: signals and headers cost more than most calls' own work.
 */
export class LazyContext implements HandlerContext {
  readonly #makeValues: () => ContextValues;
  readonly #make: (values: ContextValues) => Controlled;
  #values: ContextValues | undefined;
  #made: Controlled | undefined;
  #isOver = false;

  constructor(makeValues: () => ContextValues, make: (values: ContextValues) => Controlled) {
    this.#makeValues = makeValues;
    this.#make = make;
  }

  get #inner(): Controlled {
    if (this.#made === undefined) {
      this.#made = this.#make(this.values);
      if (this.#isOver) {
        this.#made.abort(CALL_OVER);
      }
    }
    return this.#made;
  }

  /** The call is over: its signal is aborted, if anybody has it. */
  end(): void {
    this.#isOver = true;
    this.#made?.abort(CALL_OVER);
  }

  get method(): HandlerContext["method"] {
    return this.#inner.method;
  }
  get service(): HandlerContext["service"] {
    return this.#inner.service;
  }
  get signal(): AbortSignal {
    return this.#inner.signal;
  }
  get timeoutMs(): () => number | undefined {
    return this.#inner.timeoutMs;
  }
  get requestMethod(): string {
    return this.#inner.requestMethod;
  }
  get requestHeader(): Headers {
    return this.#inner.requestHeader;
  }
  get responseHeader(): Headers {
    return this.#inner.responseHeader;
  }
  get responseTrailer(): Headers {
    return this.#inner.responseTrailer;
  }
  get protocolName(): string {
    return this.#inner.protocolName;
  }
  get values(): ContextValues {
    this.#values ??= this.#makeValues();
    return this.#values;
  }
  get url(): string {
    return this.#inner.url;
  }
}
