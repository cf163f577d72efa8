import type { IncomingMessage } from "node:http";
import type { DescMethod } from "@bufbuild/protobuf";
import type { ContextValues, HandlerContext } from "@connectrpc/connect";
import type { Listed } from "../active-list.ts";

/**
 * What a handler of the local API finds in its context. What takes long to make is made when it is asked for; headers that
 * a handler sets are not sent.
 */
export class LocalContext implements HandlerContext, Listed {
  slot = -1;
  readonly protocolName = "connect";
  readonly requestMethod = "POST";
  readonly method: DescMethod;
  readonly #request: IncomingMessage;
  readonly #makeValues: () => ContextValues;
  readonly #endsAtMs: number | undefined;
  #values: ContextValues | undefined;
  #controller: AbortController | undefined;
  #requestHeader: Headers | undefined;
  #responseHeader: Headers | undefined;
  #responseTrailer: Headers | undefined;
  #isOver = false;
  #reason: unknown;

  /** `timeoutMs`: what the caller gives the call, for who ends it then; undefined: as long as it takes. */
  constructor(
    method: DescMethod,
    request: IncomingMessage,
    timeoutMs: number | undefined,
    makeValues: () => ContextValues,
  ) {
    this.method = method;
    this.#request = request;
    this.#makeValues = makeValues;
    this.#endsAtMs = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
  }

  /** The call is over, for this reason, which its signal is aborted with; the first one holds. */
  end(reason: unknown): void {
    if (!this.#isOver) {
      this.#isOver = true;
      this.#reason = reason;
      this.#controller?.abort(reason);
    }
  }

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#isOver) {
        this.#controller.abort(this.#reason);
      }
    }
    return this.#controller.signal;
  }

  get service(): HandlerContext["service"] {
    return this.method.parent;
  }

  timeoutMs = (): number | undefined => (this.#endsAtMs === undefined ? undefined : this.#endsAtMs - performance.now());

  get values(): ContextValues {
    this.#values ??= this.#makeValues();
    return this.#values;
  }

  get url(): string {
    return `http://${this.#request.headers.host ?? "localhost"}${this.#request.url ?? ""}`;
  }

  get requestHeader(): Headers {
    if (this.#requestHeader === undefined) {
      this.#requestHeader = new Headers();
      for (const [name, values] of Object.entries(this.#request.headersDistinct)) {
        for (const value of values ?? []) {
          this.#requestHeader.append(name, value);
        }
      }
    }
    return this.#requestHeader;
  }

  get responseHeader(): Headers {
    this.#responseHeader ??= new Headers();
    return this.#responseHeader;
  }

  get responseTrailer(): Headers {
    this.#responseTrailer ??= new Headers();
    return this.#responseTrailer;
  }
}
