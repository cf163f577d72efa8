import { create } from "@bufbuild/protobuf";
import {
  type AnnounceRequest,
  type AnnounceResponse,
  AnnounceResponseSchema,
  AnnounceVerdict,
} from "@weightline/proto/node";

/** What a directory knows of a node when its next announce comes. */
export interface KnownNode {
  epoch: bigint;
  sequence: bigint;
  bootId: string;
  storeId: string;
  address: string;
  holdingsRevision: bigint;
  /** False once its announces have ended. */
  live: boolean;
}

/** What is to be done with an announce: take it, or answer this. `repeated` ones are answered as accepted and change nothing. */
export type Judgement =
  | { verdict: "take" | "repeated" | "resend" }
  | { verdict: "stale"; knownEpoch: bigint }
  | { verdict: "name-taken"; takenBy: string };

/** The fence: node, epoch and sequence decide, whatever order announces arrive in. */
export function judgeAnnounce(message: AnnounceRequest, known: KnownNode | undefined): Judgement {
  if (known !== undefined) {
    const sameBoot = known.bootId === message.bootId;
    // The same store started again: its epoch decides. Another store under a live name is a second node.
    if (!sameBoot && known.live && known.storeId !== message.storeId) {
      return { verdict: "name-taken", takenBy: known.address };
    }
    if (message.epoch < known.epoch || (!sameBoot && message.epoch === known.epoch)) {
      return { verdict: "stale", knownEpoch: known.epoch };
    }
  }
  const sameStart = known !== undefined && known.bootId === message.bootId && known.epoch === message.epoch;
  if (sameStart && message.sequence <= known.sequence) {
    return { verdict: "repeated" };
  }
  return message.holdings === undefined && !(sameStart && known.holdingsRevision === message.holdingsRevision)
    ? { verdict: "resend" }
    : { verdict: "take" };
}

const VERDICTS = {
  take: AnnounceVerdict.ACCEPTED,
  repeated: AnnounceVerdict.ACCEPTED,
  resend: AnnounceVerdict.RESEND,
  stale: AnnounceVerdict.STALE,
  "name-taken": AnnounceVerdict.NAME_TAKEN,
} as const;

/** The reply to an announce. */
export function announceReply(judgement: Judgement, nextAnnounceMs: number): AnnounceResponse {
  return create(AnnounceResponseSchema, {
    verdict: VERDICTS[judgement.verdict],
    nextAnnounceMs,
    ...(judgement.verdict === "stale" ? { knownEpoch: judgement.knownEpoch } : {}),
    ...(judgement.verdict === "name-taken" ? { takenBy: judgement.takenBy } : {}),
  });
}
