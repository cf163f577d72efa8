import { createServer, type Socket } from "node:net";
import { WeightlineError } from "../error.ts";
import { formatAddress } from "../network-address.ts";
import type { ConnectionTable } from "./connection-table.ts";

/** Where a server listens, and its end. */
export interface Listener {
  readonly port: number;
  /** No new connections from then on; those that speak HTTP/2 stay, the others end. */
  stop(): void;
}

/** Connections that the kernel keeps until they are accepted: all agents come at once after a restart. */
const BACKLOG_COUNT = 4096;

/** The first of the addresses that the kernel has. A port in use is for the server itself to report. */
export async function firstBindable(bind: readonly string[]): Promise<string> {
  for (const host of bind) {
    const code = await new Promise<string | undefined>((resolve) => {
      const probe = createServer();
      probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code));
      probe.listen({ host, port: 0 }, () => probe.close(() => resolve(undefined)));
    });
    if (code !== "EAFNOSUPPORT" && code !== "EADDRNOTAVAIL") {
      return host;
    }
  }
  return bind.at(-1) ?? "0.0.0.0";
}

/** The error of a port that cannot be opened. */
export function portError(flag: string, host: string, port: number, cause: Error): WeightlineError {
  const taken = /EADDRINUSE/.test(cause.message);
  const why = taken ? "another program has it" : cause.message;
  return new WeightlineError("InUse", `port ${port} (${flag}) cannot be opened on ${host}: ${why}`, {
    field: flag,
    value: formatAddress({ host, port }),
    wayOut: `stop what has the port, or give another ${flag} (0: any free one)`,
    cause,
  });
}

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
