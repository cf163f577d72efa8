import type { GivenDescriptor } from "@weightline/rdma-native";
import { WeightlineError } from "@weightline/runtime";
import type { Holding } from "../holdings/holding.ts";
import type { LeaseOwner } from "../leases/lease-table.ts";
import type { NamedIdentity } from "../store/holding-record.ts";

/** An offer that came to nothing. Who waited for it looks elsewhere. */
export class OfferEndedError extends WeightlineError {}

/** What the pod does next. */
export type OfferStep =
  | { kind: "given"; given: GivenDescriptor; descriptors: number }
  /** Only posted when no segment is missing. */
  | { kind: "seal" };

/** One offer while it lives; its work is done step by step in offer-work.ts. */
export interface Offer {
  /** Also the holding's. */
  readonly id: string;
  readonly named: NamedIdentity;
  readonly owner: LeaseOwner;
  readonly stallMs: number;
  /** Once its list of tensors is accepted. */
  holding: Holding | undefined;
  /** Segments that have not come yet; empty without a holding too. */
  readonly missing: Set<number>;
  /** Aborted with an OfferEndedError when the offer is over. */
  readonly ended: AbortSignal;
  end(reason: OfferEndedError): void;
  post(step: OfferStep): void;
  /** The next step; rejects when the offer ends, or when the pod takes longer than `stallMs`. */
  next(signal: AbortSignal): Promise<OfferStep>;
  /** Steps that nobody will take any more. */
  rest(): OfferStep[];
}

/** Makes an offer without any work begun. */
export function createOffer(facts: Pick<Offer, "id" | "named" | "owner" | "stallMs">): Offer {
  const ending = new AbortController();
  const waiting: OfferStep[] = [];
  let arrived: (() => void) | undefined;

  const stalled = () =>
    new OfferEndedError("DeadlineExceeded", `the pod took no step for ${facts.stallMs / 1000} s`, {
      field: "stall_timeout_s",
      value: String(facts.stallMs / 1000),
      wayOut: "offer it again, with a longer stall_timeout_s where filling takes so long",
    });

  return {
    ...facts,
    holding: undefined,
    missing: new Set(),
    ended: ending.signal,
    end: (reason) => ending.abort(reason),
    post(step) {
      waiting.push(step);
      arrived?.();
    },
    async next(signal) {
      signal.throwIfAborted();
      const [ready] = waiting.splice(0, 1);
      if (ready !== undefined) {
        return ready;
      }
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const onAbort = () => reject(signal.reason);
      const timer = setTimeout(() => reject(stalled()), facts.stallMs);
      signal.addEventListener("abort", onAbort, { once: true });
      arrived = resolve;
      try {
        await promise;
      } finally {
        clearTimeout(timer);
        signal.removeEventListener("abort", onAbort);
        arrived = undefined;
      }
      return this.next(signal);
    },
    rest: () => waiting.splice(0),
  };
}
