import { enumName } from "@weightline/proto";
import { type Holding, HoldingStateSchema, NodeStateSchema, TierSchema } from "@weightline/proto/common";
import { formatByteSize } from "@weightline/runtime/client";
import { withControlPlane } from "../clients.ts";
import { printRows } from "../output/output.ts";
import type { Settings } from "../settings.ts";

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

/** One entry for each name of a holding. */
export function holdingEntries(holding: Holding) {
  return holding.identities.map(({ identity, rank, sourceId }) => ({
    source_id: sourceId,
    object_digest: hex(holding.objectDigest),
    model_name: identity?.modelName ?? "",
    revision: identity?.revision ?? "",
    rank,
    state: enumName(HoldingStateSchema, holding.state),
    verified_bytes: holding.verifiedBytes,
    total_bytes: holding.totalBytes,
    tier: enumName(TierSchema, holding.tier),
    leases: holding.leases,
    holding_id: holding.holdingId,
  }));
}

export async function nodes(settings: Settings): Promise<void> {
  const { nodes: list } = await withControlPlane(settings, (client) => client.listNodes({}));
  const data = list.map((node) => ({
    name: node.name,
    state: enumName(NodeStateSchema, node.state),
    epoch: node.epoch,
    address: node.address,
    last_seen_ms: node.lastSeenMs,
    memory: { limit: node.memory?.limit ?? 0n, used: node.memory?.used ?? 0n },
    holdings: node.holdings.flatMap(holdingEntries),
    version: node.version,
  }));
  const rows = data.flatMap((node) => {
    const holdings = node.holdings.length === 0 ? [undefined] : node.holdings;
    return holdings.map((holding, i) => ({ node, holding, first: i === 0 }));
  });
  await printRows(
    settings.output,
    data,
    rows,
    [
      { title: "NODE", value: ({ node, first }) => (first ? node.name : "") },
      { title: "STATE", value: ({ node, first }) => (first ? node.state : "") },
      { title: "ADDRESS", wide: true, value: ({ node, first }) => (first ? node.address : "") },
      {
        title: "MEMORY",
        right: true,
        value: ({ node, first }) =>
          first ? `${formatByteSize(node.memory.used)} / ${formatByteSize(node.memory.limit)}` : "",
      },
      {
        title: "MODEL",
        value: ({ holding }) =>
          holding === undefined
            ? "-"
            : `${holding.model_name}${holding.revision === "" ? "" : `@${holding.revision.slice(0, 12)}`}`,
      },
      { title: "RANK", right: true, value: ({ holding }) => (holding === undefined ? "" : String(holding.rank)) },
      {
        title: "HOLDING",
        value: ({ holding }) =>
          holding === undefined
            ? ""
            : holding.state === "filling"
              ? `filling ${share(holding.verified_bytes, holding.total_bytes)}`
              : holding.state,
      },
      {
        title: "SIZE",
        right: true,
        value: ({ holding }) => (holding === undefined ? "" : formatByteSize(holding.total_bytes)),
      },
      { title: "LEASES", right: true, value: ({ holding }) => (holding === undefined ? "" : String(holding.leases)) },
      { title: "DIGEST", value: ({ holding }) => (holding === undefined ? "" : holding.object_digest.slice(0, 12)) },
      { title: "SOURCE", wide: true, value: ({ holding }) => holding?.source_id ?? "" },
    ],
    "no node has announced itself",
  );
}

function share(part: bigint, whole: bigint): string {
  return whole === 0n ? "0%" : `${(part * 100n) / whole}%`;
}
