import { readFile } from "node:fs/promises";
import { type IncomingMessage, request as requestHttp } from "node:http";
import { Agent, request as requestHttps } from "node:https";

/** The Kubernetes API, or another server that is asked over HTTP. */
export interface HttpApi {
  /** `body` is sent as JSON by POST; without it the call is a GET. Rejects when there is no whole answer. */
  ask(url: URL, body: object | undefined, signal: AbortSignal): Promise<{ status: number; text: string }>;
  close(): void;
}

export interface HttpApiOptions {
  /** PEM of the authorities, read again for each call; "" for the system's. */
  caFile: string;
  /** Bearer token, read again for each call as it is renewed on disk; "" for none. */
  tokenFile: string;
}

const ANSWER_MAX_BYTES = 1024 * 1024;
const SOCKETS_MAX = 16;

async function textOf(reply: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of reply as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > ANSWER_MAX_BYTES) {
      reply.destroy();
      throw new Error(`its answer is longer than ${ANSWER_MAX_BYTES} bytes`);
    }
    parts.push(part);
  }
  if (!reply.complete) {
    throw new Error("its answer broke off");
  }
  return Buffer.concat(parts).toString("utf8");
}

/** A client that trusts one authority and keeps its connections. */
export function createHttpApi({ caFile, tokenFile }: HttpApiOptions): HttpApi {
  let agent = new Agent({ keepAlive: true, maxSockets: SOCKETS_MAX });
  let ca = "";

  /** The connections of an older authority are not used again. */
  const agentFor = async (): Promise<Agent> => {
    const fresh = caFile === "" ? "" : await readFile(caFile, "utf8");
    if (fresh !== ca) {
      agent.destroy();
      ca = fresh;
      agent = new Agent({ keepAlive: true, maxSockets: SOCKETS_MAX, ca });
    }
    return agent;
  };

  return {
    async ask(url, body, signal) {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const token = tokenFile === "" ? "" : (await readFile(tokenFile, "utf8")).trim();
      const options = {
        method: text === undefined ? "GET" : "POST",
        headers: {
          accept: "application/json",
          ...(text === undefined
            ? {}
            : { "content-type": "application/json", "content-length": Buffer.byteLength(text) }),
          ...(token === "" ? {} : { authorization: `Bearer ${token}` }),
        },
        signal,
      };
      const secure = url.protocol === "https:";
      const own = secure ? await agentFor() : undefined;
      const reply = await new Promise<IncomingMessage>((resolve, reject) => {
        const call =
          own === undefined
            ? requestHttp(url, options, resolve)
            : requestHttps(url, { ...options, agent: own }, resolve);
        call.once("error", reject);
        call.end(text);
      });
      return { status: reply.statusCode ?? 0, text: await textOf(reply) };
    },
    close: () => agent.destroy(),
  };
}
