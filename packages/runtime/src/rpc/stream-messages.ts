import { setImmediate as nextTurn } from "node:timers/promises";
import { create, type DescMessage, type DescMethod, type MessageShape } from "@bufbuild/protobuf";
import type * as grpc from "@grpc/grpc-js";
import { WeightlineError } from "../error.ts";
import type { CallEnd } from "./call-end.ts";
import { malformedRequest } from "./rpc-error.ts";

export type RequestStream = grpc.ServerReadableStream<unknown, unknown> | grpc.ServerDuplexStream<unknown, unknown>;
export type ReplyStream = grpc.ServerWritableStream<unknown, unknown> | grpc.ServerDuplexStream<unknown, unknown>;

/** What both sides of a streaming call have in common. */
export interface StreamSides {
  end: CallEnd;
  /** Told when the handler takes a message. */
  onTaken: (call: unknown) => void;
}

/** In the place of a message whose bytes do not decode: grpc-js itself would call that an internal error. */
export class Undecodable {
  readonly #cause: unknown;
  constructor(cause: unknown) {
    this.#cause = cause;
  }
  fault(method: DescMethod): Error {
    const cause = this.#cause;
    return cause instanceof WeightlineError
      ? cause
      : malformedRequest(method.input.typeName, cause instanceof Error ? cause.message : String(cause));
  }
}

export function decoded(method: DescMethod, message: unknown): unknown {
  if (message instanceof Undecodable) {
    throw message.fault(method);
  }
  return message;
}

/** Messages of a caller that are kept until the handler takes them. */
const READ_AHEAD_COUNT = 16;

/** A caller's messages, as fast as the handler takes them; ends with the call's reason. */
export async function* requestsOf(
  method: DescMethod,
  call: RequestStream,
  { end, onTaken }: StreamSides,
): AsyncGenerator<unknown> {
  const queue: unknown[] = [];
  let isWhole = false;
  let failure: unknown;
  let wake = () => {};
  call.on("data", (message) => {
    queue.push(message);
    if (queue.length >= READ_AHEAD_COUNT) {
      call.pause();
    }
    wake();
  });
  call.on("end", () => {
    isWhole = true;
    wake();
  });
  call.on("error", (error) => {
    failure = error;
    wake();
  });
  end.onEnd(() => wake());

  while (!isWhole || queue.length > 0) {
    end.throwIfOver();
    if (failure !== undefined) {
      throw failure;
    }
    if (queue.length > 0) {
      onTaken(call);
      yield decoded(method, queue.shift());
    } else {
      const more = new Promise<void>((resolve) => {
        wake = resolve;
      });
      call.resume();
      await more;
    }
  }
  // A call that is reset ends first and is cancelled in the same turn: it must not look whole.
  await nextTurn();
  end.throwIfOver();
}

/** Waits until the stream takes more, or the call is over. */
function drained(call: ReplyStream, end: CallEnd): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      call.off("drain", done);
      takeBack();
      resolve();
    };
    const takeBack = end.onEnd(done);
    call.on("drain", done);
  });
}

/** Sends the handler's replies as fast as the client takes them. */
export async function sendAll(method: DescMethod, call: ReplyStream, replies: unknown, end: CallEnd): Promise<void> {
  for await (const item of replies as AsyncIterable<MessageShape<DescMessage>>) {
    end.throwIfOver();
    if (!call.write(create(method.output, item))) {
      await drained(call, end);
    }
  }
  call.end();
}
