import { create } from "@bufbuild/protobuf";
import { computeSourceId } from "@weightline/proto";
import { type Holding as HoldingMessage, HoldingSchema, HoldingState, Tier } from "@weightline/proto/common";
import type { LayoutHeader } from "../layout-reader.ts";
import type { HoldingRecord, NamedIdentity } from "../store/holding-record.ts";
import type { HoldingStateName } from "./holding-state.ts";

/** A holding as the agent knows it: its record, what its layout says, and who uses it. */
export interface Holding {
  readonly id: string;
  readonly record: HoldingRecord;
  layout: LayoutHeader | undefined;
  verifiedBytes: number;
  /** Node that its bytes come from, or came from last; "" at the origin. Nobody fills it from here meanwhile: both would wait. */
  parent: string;
  /** Bytes that it counts against the limit. */
  charge: number;
  /** Monotonic ms of the last lease or serving. */
  lastUsedAt: number;
  /** Leases on it now. */
  leases: number;
  /** Children that read it now. */
  readers: number;
  /**
   * Set on a filling one whose verified bytes may be right no more: found in the store at the start, or refused by a child.
   * They are proved before the fill goes on; until then nobody else reads it.
   */
  suspect: boolean;
  /** Times that it was mended: peers that had left it for wrong bytes may try it again. */
  repairs: number;
  /** Settles when an attempt to evict it unasked has ended, with or without it; meanwhile it is not leased. */
  freeing?: Promise<void> | undefined;
}

/** mx_source_id and rank as one key. */
export function nameKey(sourceId: string, rank: number): string {
  return `${sourceId}/${rank}`;
}

export function keyOf({ identity, rank }: NamedIdentity): string {
  return nameKey(computeSourceId(identity), rank);
}

/** The name that people know it by. */
export function modelNameOf(holding: Holding): string {
  return holding.record.identities[0]?.identity.modelName ?? "";
}

const STATES: Readonly<Record<HoldingStateName, HoldingState>> = {
  filling: HoldingState.FILLING,
  complete: HoldingState.COMPLETE,
  damaged: HoldingState.DAMAGED,
  evicting: HoldingState.EVICTING,
};

/** What goes over the wire. */
export function toMessage(holding: Holding): HoldingMessage {
  const { record, layout } = holding;
  return create(HoldingSchema, {
    holdingId: holding.id,
    identities: record.identities.map(({ identity, rank }) => ({
      identity,
      rank,
      sourceId: computeSourceId(identity),
    })),
    state: STATES[record.state],
    kind: layout?.kind ?? "",
    layoutDigest: Buffer.from(record.layoutDigest, "hex"),
    objectDigest: Buffer.from(record.objectDigest, "hex"),
    totalBytes: BigInt(layout?.totalBytes ?? 0),
    verifiedBytes: BigInt(holding.verifiedBytes),
    chunkBytes: layout?.chunkBytes ?? 0,
    items: BigInt(layout?.itemCount ?? 0),
    tier: Tier.DRAM,
    leases: holding.leases,
    originHoldingId: record.origin,
    layoutBytes: BigInt(layout?.layoutBytes ?? 0),
    algorithm: layout?.algorithm ?? "",
    parent: holding.parent,
    repairs: holding.repairs,
  });
}

const PAGE_BYTES = 4096;
const CHUNK_DIGEST_MAX_BYTES = 32;

/** Bytes of tmpfs that a holding of this size takes at most: segments, layout, digests and bitmap, rounded to pages. */
export function chargeOf(totalBytes: number, layoutBytes: number, chunkBytes: number, segmentCount: number): number {
  const chunks = Math.ceil(totalBytes / Math.max(1, chunkBytes)) + segmentCount;
  const pages = PAGE_BYTES * (segmentCount + 5);
  return totalBytes + layoutBytes + chunks * CHUNK_DIGEST_MAX_BYTES + Math.ceil(chunks / 8) + pages;
}
