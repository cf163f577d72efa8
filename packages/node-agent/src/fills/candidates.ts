import { enumName } from "@weightline/proto";
import { type Holding as HoldingMessage, HoldingState, HoldingStateSchema } from "@weightline/proto/common";

/** A holding of another node that could be read. */
export interface Candidate {
  node: string;
  address: string;
  epoch: bigint;
  holding: HoldingMessage;
}

/** What a started transfer must go on with: never another object. */
export interface Target {
  layoutDigest: string;
  /** "" while the origin still fills. */
  objectDigest: string;
  origin: string;
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

/** Two holdings with one key are the same object: by its digest, or by the origin while there is none. */
export function objectKey(holding: HoldingMessage): string {
  const digest = hex(holding.objectDigest);
  return digest === "" ? `origin:${holding.originHoldingId}` : digest;
}

export function targetOf(holding: HoldingMessage): Target {
  return {
    layoutDigest: hex(holding.layoutDigest),
    objectDigest: hex(holding.objectDigest),
    origin: holding.originHoldingId,
  };
}

/** True when the candidate's bytes are the target's. */
export function matches(candidate: Candidate, target: Target): boolean {
  const other = targetOf(candidate.holding);
  if (other.layoutDigest !== target.layoutDigest) {
    return false;
  }
  return target.objectDigest !== "" && other.objectDigest !== ""
    ? other.objectDigest === target.objectDigest
    : other.origin === target.origin;
}

/** Only what can be read now. */
export function readable(candidate: Candidate): boolean {
  const state = enumName(HoldingStateSchema, candidate.holding.state);
  return state === "complete" || state === "filling";
}

/** True for one that is being filled from this node: both would wait for each other. */
export function fedBy(candidate: Candidate, node: string): boolean {
  return candidate.holding.state === HoldingState.FILLING && candidate.holding.parent === node;
}

/**
 * Chooses the object, then orders its holders: the object with most complete holders, then the lower digest; among its
 * holders complete ones first, then those with more verified bytes, then by name.
 */
export function chooseObject(candidates: readonly Candidate[]): Candidate[] {
  const groups = Map.groupBy(candidates.filter(readable), ({ holding }) => objectKey(holding));
  const complete = (group: readonly Candidate[]) =>
    group.filter(({ holding }) => holding.state === HoldingState.COMPLETE).length;
  const [best] = [...groups].sort(([keyA, a], [keyB, b]) => complete(b) - complete(a) || (keyA < keyB ? -1 : 1));
  return orderHolders(best?.[1] ?? []);
}

export function orderHolders(holders: readonly Candidate[]): Candidate[] {
  return [...holders].sort(
    (a, b) =>
      Number(b.holding.state === HoldingState.COMPLETE) - Number(a.holding.state === HoldingState.COMPLETE) ||
      Number(b.holding.verifiedBytes - a.holding.verifiedBytes) ||
      a.node.localeCompare(b.node),
  );
}
