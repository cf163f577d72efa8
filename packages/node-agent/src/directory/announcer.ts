import { type Client, Code, ConnectError } from "@connectrpc/connect";
import type { AnnounceRequest, AnnounceResponse, NodeService } from "@weightline/proto/node";

/** Tells a control plane of this node. */
export interface Announcer {
  /** One announce and its reply; the one before must have ended. Throws ConnectError. */
  announce(message: AnnounceRequest): Promise<AnnounceResponse>;
  close(): void;
}

const REPLY_TIMEOUT_MS = 5000;
/** A control plane that is too old for streams is asked for one again after so long: it may have been replaced. */
const SINGLE_FOR_MS = 300_000;

interface AnnounceStream {
  /** Undefined: the stream has ended, and the message may not have been read. */
  ask(message: AnnounceRequest): Promise<AnnounceResponse | undefined>;
  close(): void;
}

function openStream(client: Client<typeof NodeService>, replyTimeoutMs: number): AnnounceStream {
  const given = new AbortController();
  const unsent: AnnounceRequest[] = [];
  let wake = () => {};
  async function* messages() {
    for (;;) {
      const message = unsent.shift();
      if (message === undefined) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      } else {
        yield message;
      }
    }
  }
  const replies = client.announceStream(messages(), { signal: given.signal })[Symbol.asyncIterator]();
  return {
    async ask(message) {
      const silent = `announces are not answered within ${replyTimeoutMs} ms`;
      const timer = setTimeout(() => given.abort(new ConnectError(silent, Code.DeadlineExceeded)), replyTimeoutMs);
      unsent.push(message);
      wake();
      try {
        const { value, done } = await replies.next();
        return done ? undefined : value;
      } finally {
        clearTimeout(timer);
      }
    },
    close: () => given.abort(),
  };
}

/**
 * Announces on one stream for as long as it lasts: a call of its own costs an idle process twice as much
 * (`./mx bench many-holdings`).
 */
export function createAnnouncer(client: Client<typeof NodeService>, replyTimeoutMs = REPLY_TIMEOUT_MS): Announcer {
  let stream: AnnounceStream | undefined;
  let singleUntilMs = 0;

  const close = () => {
    stream?.close();
    stream = undefined;
  };
  const single = (message: AnnounceRequest) => client.announce(message, { timeoutMs: replyTimeoutMs });

  /** Undefined: the stream that was open is no more. */
  const onStream = async (message: AnnounceRequest, wasOpen: boolean): Promise<AnnounceResponse | undefined> => {
    stream ??= openStream(client, replyTimeoutMs);
    try {
      const reply = await stream.ask(message);
      if (reply === undefined) {
        close();
      }
      return reply;
    } catch (error) {
      close();
      const { code } = ConnectError.from(error);
      if (code === Code.Unimplemented) {
        singleUntilMs = performance.now() + SINGLE_FOR_MS;
        return single(message);
      }
      if (wasOpen && code === Code.Unavailable) {
        return undefined;
      }
      throw error;
    }
  };

  return {
    async announce(message) {
      if (performance.now() < singleUntilMs) {
        return single(message);
      }
      const reply = stream === undefined ? undefined : await onStream(message, true);
      return reply ?? (await onStream(message, false)) ?? single(message);
    },
    close,
  };
}
