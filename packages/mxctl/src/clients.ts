import { setTimeout as sleep } from "node:timers/promises";
import { type CallOptions, type Client, Code, ConnectError } from "@connectrpc/connect";
import { AgentService } from "@weightline/proto/local";
import { NodeService } from "@weightline/proto/node";
import { createLocalClient } from "@weightline/runtime/channels";
import { fromRpcError, WeightlineError } from "@weightline/runtime/client";
import { openControlPlane } from "./control-plane-channel.ts";
import type { Settings } from "./settings.ts";

const RETRY_MS = 200;

/**
 * Runs `call` against the control plane's NodeService, on the first address that answers; errors name the endpoint.
 * What was unreachable, or went away in the middle, is tried again: on the next address, then by `maxRetries`.
 */
export async function withControlPlane<Result>(
  settings: Settings,
  call: (client: Client<typeof NodeService>) => Promise<Result>,
): Promise<Result> {
  let failure: WeightlineError | undefined;
  for (let attempt = 0; attempt <= settings.maxRetries; attempt++) {
    if (attempt > 0) {
      await sleep(RETRY_MS);
    }
    for (const address of settings.endpoint) {
      const channel = openControlPlane(settings, [address]);
      try {
        return await call(channel.client(NodeService));
      } catch (error) {
        failure = controlPlaneError(settings, fromRpcError(error));
        if (failure.code !== "Unavailable") {
          throw failure;
        }
      } finally {
        channel.close();
      }
    }
  }
  throw failure;
}

/** An error of the RPC layer, not one that the other side worded. */
function isBare({ field, wayOut }: WeightlineError): boolean {
  return field === "" && wayOut === "";
}

/** What the control plane words itself stays; gRPC's own errors get the endpoint and a way out. */
function controlPlaneError(settings: Settings, error: WeightlineError): WeightlineError {
  if (!isBare(error)) {
    return error;
  }
  if (error.code === "DeadlineExceeded") {
    return late(`the control plane at ${settings.endpointText}`, settings, error);
  }
  return error.code === "Unavailable" ? unreachable(settings.endpointText, error) : error;
}

function late(who: string, settings: Settings, cause: unknown): WeightlineError {
  const seconds = String(settings.timeoutMs / 1000);
  return new WeightlineError("DeadlineExceeded", `${who} did not answer within ${seconds} s`, {
    field: "--timeout",
    value: seconds,
    wayOut: "see whether it runs, or give a longer --timeout",
    cause,
  });
}

export function unreachable(endpoint: string, cause: WeightlineError): WeightlineError {
  return new WeightlineError("Unavailable", `the control plane at ${endpoint} does not answer: ${cause.message}`, {
    field: "--endpoint",
    value: endpoint,
    wayOut: "start it, or give --endpoint or MODEL_EXPRESS_ENDPOINT",
    cause,
  });
}

const DEAD_SOCKET = "the socket is dead: no agent listens on it";
const MOUNTED_FILE = "; in a pod mount the socket's directory, not the socket file, which a restart replaces";

const SOCKET_REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no socket",
  ENOTDIR: "there is no socket",
  ECONNREFUSED: DEAD_SOCKET,
  EACCES: "this user may not open it",
  EPERM: "this user may not open it",
};

/** What a Unix socket's path can hold, in bytes. */
const SOCKET_PATH_MAX_BYTES = 107;

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
        wayOut: `start the agent on this node, or give --socket or MX_AGENT_SOCKET${reason === DEAD_SOCKET ? MOUNTED_FILE : ""}`,
        cause: error,
      });
    }
  }
  if (error instanceof ConnectError && error.code === Code.DeadlineExceeded && isBare(known)) {
    return late(`the agent at ${settings.socket}`, settings, error);
  }
  return isBare(known) && LOST_CONNECTION.test(known.message)
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
  const length = Buffer.byteLength(settings.socket);
  if (length > SOCKET_PATH_MAX_BYTES) {
    throw new WeightlineError("InvalidArgument", `${settings.socketFrom} ${settings.socket} has ${length} bytes`, {
      field: settings.socketFrom,
      value: settings.socket,
      limit: `${SOCKET_PATH_MAX_BYTES} bytes`,
      wayOut: `give a path of at most ${SOCKET_PATH_MAX_BYTES} bytes, the kernel's limit`,
    });
  }
  return createLocalClient(AgentService, settings.socket);
}

/**
 * The events of a long call to the local agent, which has no deadline: slow is not dead. After each silence of
 * `timeoutMs` the agent is asked for its status; when it does not answer that either, the call ends with Unavailable.
 */
export async function* followAgent<Event>(
  settings: Settings,
  open: (agent: Client<typeof AgentService>, options: CallOptions) => AsyncIterable<Event>,
): AsyncGenerator<Event> {
  const stop = new AbortController();
  const agent = localAgent(settings);
  const events = open(agent, { signal: stop.signal })[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = events.next();
      next.catch(() => undefined);
      while (await isSilent(next, settings.timeoutMs)) {
        await askWhetherAlive(settings, agent);
      }
      const event = await next;
      if (event.done === true) {
        return;
      }
      yield event.value;
    }
  } catch (error) {
    throw localError(settings, error);
  } finally {
    stop.abort();
  }
}

async function isSilent(next: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  const timer = new AbortController();
  const heard = next.then(
    () => false,
    () => false,
  );
  try {
    return await Promise.race([heard, sleep(timeoutMs, true, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}

async function askWhetherAlive(settings: Settings, agent: Client<typeof AgentService>): Promise<void> {
  try {
    await agent.status({}, { timeoutMs: settings.timeoutMs });
  } catch (error) {
    const known = localError(settings, error);
    throw known.code === "DeadlineExceeded"
      ? new WeightlineError("Unavailable", known.message, {
          field: "--socket",
          value: settings.socket,
          wayOut: "see whether the agent runs; what was begun goes on when it does",
          cause: error,
        })
      : known;
  }
}
