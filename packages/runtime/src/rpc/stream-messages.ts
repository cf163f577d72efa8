import { create, type DescMessage, type DescMethod, type MessageShape, toBinary } from "@bufbuild/protobuf";
import type { CallEnd } from "./call-end.ts";
import type { GrpcCall } from "./grpc-call.ts";
import type { LongDecodes } from "./long-decodes.ts";
import { brokenRequest, decodeMessage } from "./received-message.ts";

/** What both sides of a streaming call have in common. */
export interface StreamSides {
  end: CallEnd;
  /** Told when the handler takes a message. */
  onTaken: (call: GrpcCall) => void;
  /** Calls back when it is the call's turn to read one more message. */
  takeTurn: (call: GrpcCall, start: () => void) => void;
  decodes: LongDecodes;
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
  { end, onTaken, takeTurn, decodes }: StreamSides,
): AsyncGenerator<unknown> {
  for (;;) {
    end.throwIfOver();
    if (call.hasMessage) {
      await new Promise<void>((resolve) => takeTurn(call, resolve));
      end.throwIfOver();
      const message = call.takeMessage();
      if (message !== undefined) {
        const request = await decodeMessage(method.input, message, call.encoding, decodes.of(call, takeTurn));
        onTaken(call);
        yield request;
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
