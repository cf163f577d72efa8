import type { Holding as HoldingMessage } from "@weightline/proto/common";
import { PeerService } from "@weightline/proto/peer";
import { native, type StreamTicket } from "@weightline/rdma-native";
import { fromRpcError, type GrpcChannel, type Logger, WeightlineError } from "@weightline/runtime";
import type { KnownHolder } from "../directory/directory-client.ts";
import type { Candidate } from "../fills/candidates.ts";
import type { Wanted } from "../fills/wanted.ts";
import type { Holding } from "../holdings/holding.ts";
import type { DialPeer } from "./peer-security.ts";

/** What a parent's agent gave. */
export interface Opened {
  endpoint: string;
  tickets: StreamTicket[];
  holding: HoldingMessage;
}

/** Other agents, asked by gRPC. */
export interface PeerClient {
  /** What the node itself says it holds of this; empty when it does not answer. */
  find(holder: KnownHolder, wanted: Wanted, signal: AbortSignal): Promise<Candidate[]>;
  open(
    candidate: Candidate,
    holding: Holding,
    options: { streams: number; algorithm: string; signal: AbortSignal },
  ): Promise<Opened>;
  close(): void;
}

const FIND_TIMEOUT_MS = 2000;
const OPEN_TIMEOUT_MS = 3000;
/** Channels that are kept; a fleet's agent talks to few at a time. */
const CHANNELS_MAX = 64;
/** Codes of a refused Open that say what is wrong between the two. */
const OF_THE_PEER: ReadonlySet<string> = new Set([
  "Unavailable",
  "NotFound",
  "DeadlineExceeded",
  "Refused",
  "PermissionDenied",
]);
const TICKET_ID_BYTES = 16;
const SECRET_BYTES = 32;

export function createPeerClient(node: string, dial: DialPeer, log: Logger): PeerClient {
  const channels = new Map<string, GrpcChannel>();

  const clientOf = ({ node: name, address }: Pick<KnownHolder, "node" | "address">) => {
    // An address may become another node's.
    const key = `${name} ${address}`;
    let channel = channels.get(key);
    if (channel === undefined) {
      channel = dial(name, address);
      channels.set(key, channel);
      const oldest = channels.keys().next().value;
      if (channels.size > CHANNELS_MAX && oldest !== undefined) {
        channels.get(oldest)?.close();
        channels.delete(oldest);
      }
    }
    return channel.client(PeerService);
  };

  return {
    async find(holder, { sourceId, rank }, signal) {
      try {
        const reply = await clientOf(holder).find(
          { subject: { case: "source", value: { sourceId, rank } } },
          { timeoutMs: FIND_TIMEOUT_MS, signal },
        );
        return reply.holdings.map((holding) => ({
          node: reply.node,
          address: holder.address,
          epoch: reply.epoch,
          holding,
        }));
      } catch (error) {
        log.debug({ node: holder.node, error: fromRpcError(error).message }, "a node does not say what it holds");
        return [];
      }
    },
    async open(candidate, holding, { streams, algorithm, signal }) {
      const { minStreamVersion, maxStreamVersion } = native.buildInfo();
      const lies = (what: string) =>
        new WeightlineError(
          "Unavailable",
          `node ${candidate.node} answered Open for holding ${candidate.holding.holdingId} with ${what}`,
          { field: "peer", value: candidate.node },
        );
      let reply: Awaited<ReturnType<ReturnType<typeof clientOf>["open"]>>;
      try {
        reply = await clientOf(candidate).open(
          {
            holdingId: candidate.holding.holdingId,
            child: node,
            streams,
            minVersion: minStreamVersion,
            maxVersion: maxStreamVersion,
            algorithm,
            epoch: candidate.epoch,
          },
          { timeoutMs: OPEN_TIMEOUT_MS, signal },
        );
      } catch (error) {
        signal.throwIfAborted();
        const known = fromRpcError(error);
        if (OF_THE_PEER.has(known.code)) {
          throw known;
        }
        // Its full table or its fault is no reason to give up here: another holder may do.
        throw new WeightlineError("Unavailable", `node ${candidate.node} opens no transfer: ${known.message}`, {
          field: "peer",
          value: candidate.node,
          cause: error,
        });
      }
      const endpoint = reply.endpoints.find(({ transport }) => transport === "stream");
      const tickets = reply.tickets.filter(
        ({ id, secret }) => id.length === TICKET_ID_BYTES && secret.length === SECRET_BYTES,
      );
      if (
        endpoint === undefined ||
        reply.holding === undefined ||
        tickets.length === 0 ||
        tickets.length !== reply.tickets.length
      ) {
        throw lies("no usable endpoint or ticket");
      }
      if (Buffer.from(reply.holding.layoutDigest).toString("hex") !== holding.record.layoutDigest) {
        throw lies("another layout");
      }
      return { endpoint: endpoint.address, tickets, holding: reply.holding };
    },
    close() {
      for (const channel of channels.values()) {
        channel.close();
      }
    },
  };
}
