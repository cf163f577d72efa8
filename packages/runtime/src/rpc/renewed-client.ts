import * as grpc from "@grpc/grpc-js";

/** A client for one call. */
export interface ClientUse {
  readonly client: grpc.Client;
  /** The call is over; called once. */
  end(): void;
}

/** A client whose channel is opened anew when it hangs. */
export interface RenewedClient {
  take(): ClientUse;
  close(): void;
}

/** No channel is opened anew sooner: a burst of calls that find nobody asks for the name once. */
const RENEWED_AFTER_MS = 1000;

interface Opened {
  client: grpc.Client;
  openedAt: number;
  calls: number;
}

/**
 * A channel that dials an address which accepts and never answers goes on doing so for ever, whatever its name resolves to by
 * then. One that still dials when a call ends is left to those that wait for it, and the next calls get a new one.
 */
export function createRenewedClient(open: () => grpc.Client): RenewedClient {
  const openNow = (): Opened => ({ client: open(), openedAt: performance.now(), calls: 0 });
  const left = new Set<Opened>();
  let current = openNow();
  let closed = false;

  const hangs = ({ client, openedAt }: Opened) =>
    client.getChannel().getConnectivityState(false) === grpc.connectivityState.CONNECTING &&
    performance.now() - openedAt >= RENEWED_AFTER_MS;

  return {
    take() {
      const used = current;
      used.calls += 1;
      return {
        client: used.client,
        end() {
          used.calls -= 1;
          if (!closed && used === current && hangs(used)) {
            left.add(used);
            current = openNow();
          }
          if (used.calls === 0 && left.delete(used)) {
            used.client.close();
          }
        },
      };
    },
    close() {
      closed = true;
      for (const { client } of [current, ...left]) {
        client.close();
      }
      left.clear();
    },
  };
}
