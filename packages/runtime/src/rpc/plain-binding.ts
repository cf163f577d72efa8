import { createServer } from "node:net";
import * as grpc from "@grpc/grpc-js";
import type { ConnectionTable } from "./connection-table.ts";

/** Where a server listens, and its end. */
export interface Listener {
  readonly port: number;
  /** No new connections from then on; those that are open stay. */
  stop(): void;
}

/** Connections that the kernel keeps until they are accepted: all agents come at once after a restart. */
const BACKLOG_COUNT = 4096;

/** Listens for `server` without TLS, on a socket of our own: each connection passes the table before HTTP/2 begins. */
export async function bindPlainly(
  server: grpc.Server,
  table: ConnectionTable,
  { host, port }: { host: string; port: number },
): Promise<Listener> {
  const injector = server.createConnectionInjector(grpc.ServerCredentials.createInsecure());
  const listener = createServer({ noDelay: true }, (socket) => {
    if (table.admit(socket)) {
      injector.injectConnection(socket);
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
    stop: () => void listener.close(),
  };
}
