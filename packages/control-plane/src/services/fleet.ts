import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { enumName } from "@weightline/proto";
import { NodeState, NodeStateSchema, type Transfer } from "@weightline/proto/common";
import type { FillNodesRequest, Node, NodeFillProgressSchema } from "@weightline/proto/node";
import { PeerService } from "@weightline/proto/peer";
import { createGrpcChannel, fromRpcError, type GrpcChannel, parseAddress, WeightlineError } from "@weightline/runtime";
import type { Directory } from "../directory/directory.ts";
import type { Security } from "../security/security.ts";

/** What one node says of its fill. */
export type FillItem = MessageInitShape<typeof NodeFillProgressSchema>;

/** What the control plane asks agents on request; nothing of it is stored. */
export interface Fleet {
  /** Each node's progress, mixed as it comes, until all have ended. */
  fill(request: FillNodesRequest, signal: AbortSignal): AsyncIterable<FillItem>;
  /** Every node's, with the `last` ended ones of each. */
  transfers(last: number, signal: AbortSignal): Promise<{ transfers: Transfer[]; silentNodes: string[] }>;
}

const TRANSFERS_TIMEOUT_MS = 2000;
/** A fill tells its progress at least so often, or the node counts as gone. */
const FILL_TIMEOUT_MS = 24 * 3_600_000;

/** A channel to a node's agent, which proves that it is that node where security is on. */
type Dial = (node: Node) => GrpcChannel;

async function* fillOne(
  dial: Dial,
  node: Node,
  request: FillNodesRequest,
  signal: AbortSignal,
): AsyncGenerator<FillItem> {
  const channel = dial(node);
  try {
    const { identity, rank } = request;
    const stream = channel
      .client(PeerService)
      .fill({ rank, ...(identity === undefined ? {} : { identity }) }, { signal, timeoutMs: FILL_TIMEOUT_MS });
    let objectDigest: Uint8Array = new Uint8Array();
    for await (const { progress, holding } of stream) {
      if (progress !== undefined) {
        yield { node: node.name, progress };
      }
      objectDigest = holding?.objectDigest ?? objectDigest;
    }
    yield { node: node.name, done: true, objectDigest };
  } catch (error) {
    const known = fromRpcError(error);
    yield { node: node.name, errorCode: known.code, error: known.message };
  } finally {
    channel.close();
  }
}

/** Items of several streams as they come. */
async function* merged(streams: AsyncGenerator<FillItem>[]): AsyncGenerator<FillItem> {
  const next = (stream: AsyncGenerator<FillItem>) => stream.next().then((result) => ({ stream, result }));
  const waiting = new Map(streams.map((stream) => [stream, next(stream)]));
  try {
    while (waiting.size > 0) {
      const { stream, result } = await Promise.race(waiting.values());
      if (result.done) {
        waiting.delete(stream);
      } else {
        waiting.set(stream, next(stream));
        yield result.value;
      }
    }
  } finally {
    await Promise.all(streams.map((stream) => stream.return(undefined)));
  }
}

export function createFleet(directory: Directory, security: Security): Fleet {
  const dial: Dial = ({ name, address }) =>
    createGrpcChannel({ addresses: [parseAddress(address, "node address")], tls: security.channelToNode(name) });
  const targets = async (names: readonly string[]): Promise<{ nodes: Node[]; missing: FillItem[] }> => {
    const all = await directory.nodes();
    if (names.length === 0) {
      return { nodes: all.filter(({ state }) => state === NodeState.READY), missing: [] };
    }
    const known = new Map(all.map((node) => [node.name, node]));
    const unknown = names.filter((name) => !known.has(name));
    if (unknown.length > 0) {
      throw new WeightlineError("NotFound", `no node is called ${unknown.join(", ")}`, {
        field: "--nodes",
        value: unknown.join(","),
        near: [...known.keys()].slice(0, 5),
        wayOut: "see mxctl nodes",
      });
    }
    const wanted = names.flatMap((name) => known.get(name) ?? []);
    const missing = wanted
      .filter(({ state }) => state !== NodeState.READY)
      .map(({ name, state }) => ({
        node: name,
        errorCode: "Unavailable",
        error: `the node is ${enumName(NodeStateSchema, state)}`,
      }));
    return { nodes: wanted.filter(({ state }) => state === NodeState.READY), missing };
  };

  return {
    async *fill(request, signal) {
      if (request.identity === undefined || request.identity.modelName === "") {
        throw new ConnectError("identity.model_name is required", Code.InvalidArgument);
      }
      const { nodes, missing } = await targets([...new Set(request.nodes)]);
      yield* missing;
      yield* merged(nodes.map((node) => fillOne(dial, node, request, signal)));
    },
    async transfers(last, signal) {
      const nodes = (await directory.nodes()).filter(({ state }) => state !== NodeState.LOST);
      const silentNodes: string[] = [];
      const lists = await Promise.all(
        nodes.map(async (node) => {
          const channel = dial(node);
          try {
            return (await channel.client(PeerService).transfers({ last }, { timeoutMs: TRANSFERS_TIMEOUT_MS, signal }))
              .transfers;
          } catch {
            silentNodes.push(node.name);
            return [];
          } finally {
            channel.close();
          }
        }),
      );
      return { transfers: lists.flat().sort((a, b) => Number(a.startedMs - b.startedMs)), silentNodes };
    },
  };
}
