import { enumName } from "@weightline/proto";
import { type Holding, HoldingStateSchema, NodeStateSchema, TierSchema } from "@weightline/proto/common";
import { formatByteSize } from "@weightline/runtime/client";
import { withControlPlane } from "../clients.ts";
import { type Column, printRows } from "../output/output.ts";
import { waiting } from "../output/waiting.ts";
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

/** "2 s ago", by the control plane's clock where it tells it. */
function ago(thenMs: bigint, nowMs: bigint): string {
  const seconds = Math.max(0, Math.round(Number((nowMs > 0n ? nowMs : BigInt(Date.now())) - thenMs) / 1000));
  return thenMs === 0n ? "-" : seconds < 120 ? `${seconds} s ago` : `${Math.round(seconds / 60)} min ago`;
}

function share(part: bigint, whole: bigint): string {
  return whole === 0n ? "0%" : `${(part * 100n) / whole}%`;
}

type HoldingEntry = ReturnType<typeof holdingEntries>[number];

/** A column of what is held; empty for a node that holds nothing. */
function held<Row extends { holding: HoldingEntry | undefined }>(
  title: string,
  value: (holding: HoldingEntry) => string,
  options: Pick<Column<Row>, "wide" | "right"> & { none?: string } = {},
): Column<Row> {
  const { none = "", ...rest } = options;
  return { title, ...rest, value: ({ holding }) => (holding === undefined ? none : value(holding)) };
}

export async function nodes(settings: Settings): Promise<void> {
  const { nodes: list, nowMs } = await waiting(
    "asking the control plane",
    withControlPlane(settings, (client) => client.listNodes({})),
  );
  const data = list.map((node) => ({
    name: node.name,
    state: enumName(NodeStateSchema, node.state),
    epoch: node.epoch,
    address: node.address,
    last_seen_ms: node.lastSeenMs,
    memory: { limit: node.memory?.limit ?? 0n, used: node.memory?.used ?? 0n },
    holdings: node.holdings.flatMap(holdingEntries),
    version: node.version,
    protection: node.protection,
  }));
  type Row = { node: (typeof data)[number]; holding: HoldingEntry | undefined; first: boolean };
  const rows: Row[] = data.flatMap((node) => {
    const holdings = node.holdings.length === 0 ? [undefined] : node.holdings;
    return holdings.map((holding, i) => ({ node, holding, first: i === 0 }));
  });
  const once = (
    title: string,
    value: (node: Row["node"]) => string,
    options: Pick<Column<Row>, "wide" | "right"> = {},
  ) => ({
    title,
    ...options,
    value: ({ node, first }: Row) => (first ? value(node) : ""),
  });
  await printRows(
    settings.output,
    data,
    rows,
    [
      once("NODE", ({ name }) => name),
      once("STATE", ({ state }) => state),
      once("SEEN", (node) => ago(node.last_seen_ms, nowMs), { wide: true, right: true }),
      once("ADDRESS", ({ address }) => address, { wide: true }),
      once("EPOCH", ({ epoch }) => String(epoch), { wide: true, right: true }),
      once("VERSION", ({ version }) => version || "-", { wide: true }),
      once("PROTECTION", ({ protection }) => protection || "-", { wide: true }),
      once("MEMORY", ({ memory }) => `${formatByteSize(memory.used)} / ${formatByteSize(memory.limit)}`, {
        right: true,
      }),
      held(
        "MODEL",
        ({ model_name, revision }) => `${model_name}${revision === "" ? "" : `@${revision.slice(0, 12)}`}`,
        {
          none: "-",
        },
      ),
      held("RANK", ({ rank }) => String(rank), { right: true }),
      held("HOLDING", ({ state, verified_bytes, total_bytes }) =>
        state === "filling" ? `filling ${share(verified_bytes, total_bytes)}` : state,
      ),
      held("VERIFIED", ({ verified_bytes, total_bytes }) => share(verified_bytes, total_bytes), {
        wide: true,
        right: true,
      }),
      held("SIZE", ({ total_bytes }) => formatByteSize(total_bytes), { right: true }),
      held("TIER", ({ tier }) => tier, { wide: true }),
      held("LEASES", ({ leases }) => String(leases), { right: true }),
      held("DIGEST", ({ object_digest }) => object_digest.slice(0, 12)),
      held("SOURCE", ({ source_id }) => source_id, { wide: true }),
    ],
    "no node has announced itself",
  );
}
