import { createServer, type Socket } from "node:net";
import type { ConnectionTable } from "./connection-table.ts";

/** Where a server listens, and its end. */
export interface Listener {
  readonly port: number;
  /** No new connections from then on; those that speak HTTP/2 stay, the others end. */
  stop(): void;
}

/** Connections that the kernel keeps until they are accepted: all agents come at once after a restart. */
const BACKLOG_COUNT = 4096;

/** Listens on a socket of our own: each connection passes the table before `take` gets it, before TLS and HTTP/2 begin. */
export async function bindPort(
  table: ConnectionTable,
  { host, port }: { host: string; port: number },
  take: (socket: Socket) => void,
): Promise<Listener> {
  const listener = createServer({ noDelay: true }, (socket) => {
    if (table.admit(socket)) {
      take(socket);
    }
  });
  await new Promise<void>((resolve, reject) => {
    listener.once("error", reject);
    listener.listen({ host, port, backlog: BACKLOG_COUNT }, () => {
      listener.off("error", reject);
      resolve();
    });
  });
  const address = listener.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : port,
    stop() {
      listener.close();
      table.endUnready();
    },
  };
}
