import type { Client } from "@connectrpc/connect";
import { AgentService } from "@weightline/proto/local";
import { NodeService } from "@weightline/proto/node";
import { createGrpcChannel, createLocalClient, fromRpcError, WeightlineError } from "@weightline/runtime";
import type { Settings } from "./settings.ts";

const RETRY_MS = 200;

/** Runs `call` against the control plane's NodeService; errors name the endpoint. Retries what was unreachable. */
export async function withControlPlane<Result>(
  settings: Settings,
  call: (client: Client<typeof NodeService>) => Promise<Result>,
): Promise<Result> {
  const channel = createGrpcChannel({ addresses: settings.endpoint, defaultTimeoutMs: settings.timeoutMs });
  try {
    for (let attempt = 0; ; attempt++) {
      try {
        return await call(channel.client(NodeService));
      } catch (error) {
        const known = fromRpcError(error);
        if (known.code !== "Unavailable" || attempt >= settings.maxRetries) {
          throw known.code === "Unavailable" && known.field === "" ? unreachable(settings.endpointText, known) : known;
        }
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  } finally {
    channel.close();
  }
}

export function unreachable(endpoint: string, cause: WeightlineError): WeightlineError {
  return new WeightlineError("Unavailable", `the control plane at ${endpoint} does not answer: ${cause.message}`, {
    field: "--endpoint",
    value: endpoint,
    wayOut: "start it, or give --endpoint or MODEL_EXPRESS_ENDPOINT",
    cause,
  });
}

const SOCKET_REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no socket",
  ECONNREFUSED: "the socket is dead: no agent listens on it",
  EACCES: "this user may not open it",
};

/** What Node and Connect say of a connection that ended too early. */
const LOST_CONNECTION = /socket hang up|ECONNRESET|aborted|missing EndStreamResponse|premature/i;

/** What a call to the local agent failed with; a missing agent is named with its socket. */
export function localError(settings: Settings, error: unknown): WeightlineError {
  const known = fromRpcError(error);
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    const reason = SOCKET_REASONS[(cause as NodeJS.ErrnoException).code ?? ""];
    if (reason !== undefined) {
      return new WeightlineError("Unavailable", `no agent at ${settings.socket}: ${reason}`, {
        field: "--socket",
        value: settings.socket,
        wayOut: "start the agent on this node, or give --socket or MX_AGENT_SOCKET",
        cause: error,
      });
    }
  }
  return LOST_CONNECTION.test(known.message)
    ? new WeightlineError("Unavailable", `the agent at ${settings.socket} went away in the middle of the call`, {
        field: "--socket",
        value: settings.socket,
        wayOut: "give the command again when it is back; what was begun goes on by itself",
        cause: error,
      })
    : known;
}

/** The local agent. */
export function localAgent(settings: Settings): Client<typeof AgentService> {
  return createLocalClient(AgentService, settings.socket);
}
