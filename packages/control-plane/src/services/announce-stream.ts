import type { HandlerContext } from "@connectrpc/connect";
import type { AnnounceRequest, AnnounceResponse } from "@weightline/proto/node";

type Announce = (request: AnnounceRequest, context: HandlerContext) => Promise<AnnounceResponse>;

/**
 * A stream of announces ends after so long, or up to half longer: nodes that came together to the replicas that were left
 * spread again, and a connection that was asked to go can.
 */
const STREAM_AGE_MS = 300_000;

/** Takes announces from a stream, one after another. It ends with an announce's reply, so that none is read in vain. */
export function createAnnounceStream(announce: Announce, ageMs = STREAM_AGE_MS) {
  /** A frame of its own: a generator that waits would keep the last announce, with all its holdings, for each open stream. */
  const next = async (requests: AsyncIterator<AnnounceRequest>, context: HandlerContext) => {
    const { value, done } = await requests.next();
    return done ? undefined : announce(value, context);
  };
  return async function* announceStream(requests: AsyncIterable<AnnounceRequest>, context: HandlerContext) {
    const endsAtMs = performance.now() + ageMs * (1 + Math.random() / 2);
    const iterator = requests[Symbol.asyncIterator]();
    for (let reply = await next(iterator, context); reply !== undefined; reply = await next(iterator, context)) {
      yield reply;
      if (performance.now() > endsAtMs) {
        return;
      }
    }
  };
}
