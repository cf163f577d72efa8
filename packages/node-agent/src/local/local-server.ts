import { chmod, mkdir, unlink } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { dirname } from "node:path";
import { ConnectError, createContextValues } from "@connectrpc/connect";
import { native } from "@weightline/rdma-native";
import {
  fromRpcError,
  type Logger,
  mountLocalRpc,
  type ServiceRoute,
  toWeightlineError,
  WeightlineError,
} from "@weightline/runtime";
import fastify from "fastify";
import type { LeaseOwner, LeaseTable } from "../leases/lease-table.ts";
import { type Caller, callerKey, roleOf } from "./caller.ts";

export interface LocalServerOptions {
  path: string;
  route: ServiceRoute;
  leases: LeaseTable;
  log: Logger;
}

export interface LocalServer {
  stop(): Promise<void>;
}

/** promises.md, "Limits". */
const MESSAGE_MAX_BYTES = 4 * 1024 * 1024;
const CONNECTIONS_PER_PROCESS_MAX = 16;
const CONNECTIONS_MAX = 1024;
const SILENT_MS = 10_000;

/** Node keeps a socket's descriptor here; there is no public name for it. */
function descriptorOf(socket: Socket): number {
  const handle = (socket as unknown as { _handle?: { fd?: number } })._handle;
  return handle?.fd ?? -1;
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

/**
 * Makes way for a socket: its folder is made, a file that a dead agent left is removed, a live agent's is InUse. The folder
 * is never replaced: pods mount it, and would stay on the dead one.
 */
export async function clearSocketPath(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o755 }).catch((cause: Error) => {
    throw new WeightlineError("Refused", `the folder of --socket ${path} cannot be made: ${cause.message}`, {
      field: "--socket",
      value: path,
      cause,
    });
  });
  if (await answers(path)) {
    throw new WeightlineError("InUse", `another agent answers on ${path}`, {
      field: "--socket",
      value: path,
      wayOut: "stop it, or give another --socket",
    });
  }
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") {
      throw error;
    }
  });
}

/** Knows the process of each connection, and keeps processes within their number of connections. */
class Connections {
  readonly #callers = new WeakMap<Socket, Caller>();
  readonly #byPid = new Map<number, Set<Socket>>();
  readonly #busy = new WeakSet<Socket>();
  readonly #agent = native.openProcess(process.pid);
  readonly #options: LocalServerOptions;
  #count = 0;

  constructor(options: LocalServerOptions) {
    this.#options = options;
  }

  callerOf(socket: Socket): Caller | undefined {
    return this.#callers.get(socket);
  }

  add(socket: Socket): void {
    try {
      const peer = native.peerProcess(descriptorOf(socket));
      const owner: LeaseOwner = { peer, uses: 0, watched: false };
      const mine = this.#byPid.get(peer.pid) ?? new Set();
      try {
        this.#makeRoom(mine);
      } catch (error) {
        native.closeProcess(peer.process);
        throw error;
      }
      const release = this.#options.leases.hold(owner);
      this.#byPid.set(peer.pid, mine);
      mine.add(socket);
      this.#count += 1;
      socket.once("close", () => {
        this.#count -= 1;
        mine.delete(socket);
        if (mine.size === 0) {
          this.#byPid.delete(peer.pid);
        }
        release();
      });
      this.#callers.set(socket, { owner, role: roleOf(peer, this.#agent) });
    } catch (error) {
      this.#options.log.debug({ error: toWeightlineError(error).message }, "a local connection was closed");
      socket.destroy();
    }
  }

  /** A call on this connection began or ended. */
  setBusy(socket: Socket, busy: boolean): void {
    if (busy) {
      this.#busy.add(socket);
    } else {
      this.#busy.delete(socket);
    }
  }

  /** At a cap the oldest silent connection goes; where all are busy the newcomer is turned away. */
  #makeRoom(mine: Set<Socket>): void {
    const crowd =
      mine.size >= CONNECTIONS_PER_PROCESS_MAX ? mine : this.#count >= CONNECTIONS_MAX ? this.#largest() : undefined;
    if (crowd === undefined) {
      return;
    }
    const silent = [...crowd].find((socket) => !this.#busy.has(socket));
    if (silent === undefined) {
      throw new WeightlineError("ResourceExhausted", `a process has ${crowd.size} calls running`, {
        field: "connections",
        value: String(crowd.size),
        limit: String(CONNECTIONS_PER_PROCESS_MAX),
        wayOut: "wait for one of them to end",
      });
    }
    silent.destroy();
  }

  #largest(): Set<Socket> | undefined {
    return [...this.#byPid.values()].sort((a, b) => b.size - a.size)[0];
  }
}

/** Serves the local API over HTTP/1.1 on the Unix socket. */
export async function startLocalServer(options: LocalServerOptions): Promise<LocalServer> {
  const { path, log } = options;
  const stopping = new AbortController();
  const server = fastify({
    bodyLimit: MESSAGE_MAX_BYTES,
    forceCloseConnections: true,
    connectionTimeout: 0,
    requestTimeout: SILENT_MS,
    exposeHeadRoutes: false,
  });
  const connections = new Connections(options);
  server.server.on("connection", (socket: Socket) => connections.add(socket));
  server.addHook("onRequest", async (request) => connections.setBusy(request.raw.socket, true));
  server.addHook("onResponse", async (request) => connections.setBusy(request.raw.socket, false));
  await mountLocalRpc(server, {
    routes: [options.route],
    maxMessageBytes: MESSAGE_MAX_BYTES,
    shutdownSignal: stopping.signal,
    contextValues: (request) => createContextValues().set(callerKey, connections.callerOf(request.raw.socket)),
    onError: (method, error) => {
      const known = fromRpcError(error);
      // Connect's own errors are about requests that it cannot read: a caller must not fill the log with them.
      const own = known.code === "Internal" && !(error instanceof ConnectError);
      log[own ? "error" : "debug"](
        { method, code: known.code, error: known.message, cause: own ? known.cause : undefined },
        "a local call failed",
      );
    },
  });
  await server.listen({ path });
  await chmod(path, 0o666);
  return {
    async stop() {
      stopping.abort(new WeightlineError("Unavailable", "the agent stops", { wayOut: "try again when it is back" }));
      await server.close();
    },
  };
}
