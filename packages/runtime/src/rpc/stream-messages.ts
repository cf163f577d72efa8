import { setImmediate } from "node:timers/promises";
import { create, type DescMessage, type DescMethod, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { type CallEnd, cancelReason } from "./call-end.ts";
import type { GrpcCall } from "./grpc-call.ts";
import { brokenRequest, decodeMessage } from "./received-message.ts";

/** Waits for a later turn of the event loop that is the call's; rejects when nobody waits for the call any more. */
export async function nextTurn(call: GrpcCall, takeTurn: StreamSides["takeTurn"]): Promise<void> {
  await setImmediate();
  await new Promise<void>((resolve) => takeTurn(call, resolve));
  if (call.isOver) {
    throw cancelReason(call.isLate());
  }
}

/** What both sides of a streaming call have in common. */
export interface StreamSides {
  end: CallEnd;
  /** Told when the handler takes a message. */
  onTaken: (call: GrpcCall) => void;
  /** Calls back when it is the call's turn to read one more message. */
  takeTurn: (call: GrpcCall, start: () => void) => void;
}

/** Waits until the call says something new, by `once`, or is over. */
function untilNews(end: CallEnd, once: (wake: () => void) => void): Promise<void> {
  return new Promise((resolve) => {
    const takeBack = end.onEnd(() => {
      takeBack();
      resolve();
    });
    once(() => {
      takeBack();
      resolve();
    });
  });
}

/** A caller's messages, as fast as the handler takes them; ends with the call's reason. */
export async function* requestsOf(
  method: DescMethod,
  call: GrpcCall,
  { end, onTaken, takeTurn }: StreamSides,
): AsyncGenerator<unknown> {
  for (;;) {
    end.throwIfOver();
    if (call.hasMessage) {
      await new Promise<void>((resolve) => takeTurn(call, resolve));
      end.throwIfOver();
      const message = call.takeMessage();
      onTaken(call);
      if (message !== undefined) {
        yield await decodeMessage(method.input, message, call.encoding, () => nextTurn(call, takeTurn));
      }
    } else if (call.isWhole) {
      if (call.waitingBytes > 0) {
        throw brokenRequest("the request ends within a message");
      }
      return;
    } else {
      await untilNews(end, (wake) => call.onceMore(wake));
    }
  }
}

/** Sends the handler's replies as fast as the client takes them. */
export async function sendAll(method: DescMethod, call: GrpcCall, replies: unknown, end: CallEnd): Promise<void> {
  for await (const item of replies as AsyncIterable<MessageShape<DescMessage>>) {
    end.throwIfOver();
    if (!call.send(toBinary(method.output, create(method.output, item)))) {
      await untilNews(end, (wake) => call.onceDrained(wake));
    }
  }
  end.throwIfOver();
  call.end();
}
