import { unlink } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { connect } from "node:net";
import { dirname } from "node:path";
import { createContextValues } from "@connectrpc/connect";
import { native } from "@weightline/rdma-native";
import {
  type BoundedLog,
  createFailureLog,
  type Logger,
  makeFolders,
  mountLocalRpc,
  refuseLocalCall,
  type ServiceRoute,
  WeightlineError,
} from "@weightline/runtime";
import fastify from "fastify";
import { callerKey } from "./caller.ts";
import { type ConnectionsOptions, createConnections } from "./connections.ts";
import { FAREWELL_MS, KEEP_ALIVE_MS, MESSAGE_MAX_BYTES, REQUEST_TIMEOUT_MS, SWEEP_INTERVAL_MS } from "./limits.ts";
import { LocalSocket } from "./local-socket.ts";

export interface LocalServerOptions extends Omit<ConnectionsOptions, "log" | "onHold"> {
  path: string;
  route: ServiceRoute;
  log: Logger;
  /** For what callers can provoke. */
  bounded: BoundedLog;
}

export interface LocalServer {
  stop(): Promise<void>;
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
  try {
    makeFolders(dirname(path));
  } catch (cause) {
    const { message } = cause as Error;
    throw new WeightlineError("Refused", `the folder of --socket ${path} cannot be made: ${message}`, {
      field: "--socket",
      value: path,
      wayOut: "give a path in a folder that this user may write to",
      cause,
    });
  }
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

/** What Connect puts before a stream's message. */
const ENVELOPE_BYTES = 5;

/** Serves the local API over HTTP/1.1 on the Unix socket. */
export async function startLocalServer(options: LocalServerOptions): Promise<LocalServer> {
  const { path, log } = options;
  const stopping = new AbortController();
  const connections = createConnections({
    leases: options.leases,
    log: options.bounded,
    onRefusal: options.onRefusal,
    onHold: (pid, holdMs) => native.holdLocalCaller(listener, pid, holdMs),
  });
  /** What must be refused costs no more than that. */
  const refused = (request: IncomingMessage, response: ServerResponse): boolean => {
    const reason = connections.begin(request.socket, response) ?? unaddressed(request) ?? oversized(request);
    if (reason !== undefined) {
      refuseLocalCall(request, response, reason);
    }
    return reason !== undefined;
  };
  let http = createServer();
  const server = fastify({
    bodyLimit: MESSAGE_MAX_BYTES,
    exposeHeadRoutes: false,
    serverFactory(handle) {
      http = createServer(
        {
          requestTimeout: REQUEST_TIMEOUT_MS,
          // Node takes the smaller of both for the headers, and the larger for the whole.
          headersTimeout: REQUEST_TIMEOUT_MS,
          keepAliveTimeout: KEEP_ALIVE_MS,
          connectionsCheckingInterval: SWEEP_INTERVAL_MS,
        },
        (request, response) => {
          // Pipelined behind the one at which the connection was closed.
          if (!request.socket.destroyed && !refused(request, response)) {
            connections.turn(request.socket, () => handle(request, response));
          }
        },
      );
      return http;
    },
  });
  mountLocalRpc(server, {
    routes: [options.route],
    maxMessageBytes: MESSAGE_MAX_BYTES,
    shutdownSignal: stopping.signal,
    contextValues: (request) => createContextValues().set(callerKey, connections.callerOf(request.socket)),
    onFailure: createFailureLog(log),
  });
  await server.ready();
  // Node's server gets connections from ours and listens nowhere: this makes it look after their timeouts all the same.
  http.emit("listening");
  const listener = native.createLocalListener(path, (descriptor) => {
    const socket = new LocalSocket(descriptor);
    if (connections.admit(socket)) {
      http.emit("connection", socket);
    }
  });
  return {
    async stop() {
      stopping.abort(new WeightlineError("Unavailable", "the agent stops", { wayOut: "try again when it is back" }));
      native.closeLocalListener(listener);
      await connections.stop(FAREWELL_MS);
      await server.close();
    },
  };
}

/** A request from which no URL can be made, as HTTP/1.0 allows; handlers would end in an exception. */
function unaddressed(request: IncomingMessage): WeightlineError | undefined {
  const { host } = request.headers;
  if (host !== undefined && URL.canParse(request.url ?? "", `http://${host}`)) {
    return undefined;
  }
  return new WeightlineError("InvalidArgument", "the request's URL or host cannot be read", {
    field: "host",
    value: host ?? "",
    wayOut: "send POST with a path and `Host: localhost`",
  });
}

/** A message that says itself that it is too large: what is not announced is counted as it comes. */
function oversized(request: IncomingMessage): WeightlineError | undefined {
  const bytes = Number(request.headers["content-length"] ?? 0);
  const envelope = request.headers["content-type"]?.startsWith("application/connect") === true ? ENVELOPE_BYTES : 0;
  if (bytes - envelope <= MESSAGE_MAX_BYTES) {
    return undefined;
  }
  return new WeightlineError("ResourceExhausted", `the message has ${bytes - envelope} bytes`, {
    field: "message",
    value: `${bytes - envelope} bytes`,
    limit: `${MESSAGE_MAX_BYTES}`,
    wayOut: "send a smaller one",
  });
}
