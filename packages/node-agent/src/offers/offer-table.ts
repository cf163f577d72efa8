import { randomBytes } from "node:crypto";
import { computeSourceId, isFilesIdentity } from "@weightline/proto";
import { type DescriptorEvent, type DescriptorServerHandle, native } from "@weightline/rdma-native";
import { WeightlineError } from "@weightline/runtime";
import type { FillBoard, RunningFill } from "../fills/fill-board.ts";
import { type Holding, keyOf, modelNameOf } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { LeaseOwner, LeaseTable } from "../leases/lease-table.ts";
import { OFFERS_MAX, POD_OFFERS_MAX } from "../local/limits.ts";
import type { NamedIdentity } from "../store/holding-record.ts";
import { createOffer, type Offer, OfferEndedError } from "./offer.ts";
import { type OfferWork, refuseGiven } from "./offer-work.ts";

/** Reasons of ended offers that are kept, to be told when the pod comes back to one. */
const ENDED_KEPT_MAX = 256;

export interface OfferRequest {
  named: NamedIdentity;
  owner: LeaseOwner;
  /** Whose cap it counts for: a pod, or a process outside pods. */
  group: string;
  /** Go on although the node holds or fills that name. */
  alone: boolean;
  stallMs: number;
}

/** The offers of this node's pods. */
export interface OfferTable {
  /**
   * Begins one. AlreadyExists when the node holds or fills that name and `alone` is not set; ResourceExhausted at a cap;
   * Refused for an identity of files.
   */
  open(request: OfferRequest): { offerId: string; ticket: { ticketId: Uint8Array; secret: Uint8Array } };
  /** Takes what came over the descriptor socket. */
  given(event: DescriptorEvent): void;
  /** Completes one of the caller's process. InvalidArgument names the segments that are missing. */
  seal(offerId: string, owner: LeaseOwner): Promise<Holding>;
  /** False when it had ended. */
  withdraw(offerId: string, owner: LeaseOwner): Promise<boolean>;
  /** Ends the offer that fills a holding, and waits until its work has stopped. */
  endOf(holding: Holding): Promise<void>;
  count(): number;
  /** Ends all: the agent stops. */
  close(): Promise<void>;
}

export interface OfferTableOptions {
  registry: HoldingRegistry;
  /** Fills by name: who acquires the name waits for the offer. */
  board: FillBoard<Holding>;
  leases: LeaseTable;
  work: OfferWork;
  descriptors: () => DescriptorServerHandle;
  /** An offer is over: "sealed", or the code of why it ended. */
  onEnd: (outcome: string) => void;
}

interface Entry {
  group: string;
  offer: Offer;
  fill: RunningFill<Holding>;
}

export function createOfferTable(options: OfferTableOptions): OfferTable {
  const { registry, board, leases, work } = options;
  const entries = new Map<string, Entry>();
  const ended = new Map<string, string>();

  const remember = (id: string, why: string) => {
    ended.set(id, why);
    for (const [oldest] of ended) {
      if (ended.size <= ENDED_KEPT_MAX) {
        break;
      }
      ended.delete(oldest);
    }
  };

  const over = (id: string) =>
    new WeightlineError("NotFound", `there is no offer ${id}: ${ended.get(id) ?? "it ended"}`, {
      field: "offer_id",
      value: id,
      wayOut: "begin a new offer",
    });

  const checkFree = (named: NamedIdentity, alone: boolean) => {
    if (alone) {
      return;
    }
    const held = registry
      .named(computeSourceId(named.identity), named.rank)
      .find(({ record }) => record.state === "complete");
    const fill = board.find(keyOf(named));
    if (held === undefined && fill === undefined) {
      return;
    }
    const { modelName } = named.identity;
    const percent =
      fill === undefined || fill.progress.totalBytes === 0n
        ? ""
        : `, ${(100n * fill.progress.verifiedBytes) / fill.progress.totalBytes} % are there`;
    throw new WeightlineError(
      "AlreadyExists",
      held === undefined
        ? `${modelName}, rank ${named.rank} is being filled on this node (${fill?.progress.state}${percent})`
        : `this node holds ${modelNameOf(held)}, rank ${named.rank} already`,
      {
        field: "identity",
        value: modelName,
        wayOut: "acquire it, which waits for it and attaches; or offer it with alone=true, as an object of its own",
      },
    );
  };

  const checkCaps = (group: string) => {
    const mine = [...entries.values()].filter((entry) => entry.group === group).length;
    const [count, limit, whose] =
      mine >= POD_OFFERS_MAX ? [mine, POD_OFFERS_MAX, `${group} has`] : [entries.size, OFFERS_MAX, "all pods have"];
    if (count >= limit) {
      throw new WeightlineError("ResourceExhausted", `${whose} ${count} offers open`, {
        field: "offers",
        value: String(count),
        limit: String(limit),
        wayOut: "seal or withdraw one of them first",
      });
    }
  };

  const entryOf = (offerId: string, owner: LeaseOwner): Entry => {
    const entry = entries.get(offerId);
    if (entry === undefined || entry.offer.owner !== owner) {
      const why = ended.get(offerId);
      throw new WeightlineError(
        "NotFound",
        `this process has no offer ${offerId}${why === undefined ? "" : `: ${why}`}`,
        { field: "offer_id", value: offerId, wayOut: "begin a new offer" },
      );
    }
    return entry;
  };

  const start = (offer: Offer, alone: boolean): RunningFill<Holding> => {
    leases.stay(offer.owner);
    native.watchProcess(offer.owner.peer.process, () =>
      offer.end(
        new OfferEndedError("Unavailable", "the process that offered it ended", {
          field: "offer",
          value: offer.id,
          wayOut: "acquire it again, or offer it again",
        }),
      ),
    );
    const key = alone ? `${keyOf(offer.named)}/offer/${offer.id}` : keyOf(offer.named);
    const fill = board.start(key, (report, signal) => work.run(offer, report, signal));
    fill.done
      .then(
        () => "sealed",
        (error: OfferEndedError) => {
          remember(offer.id, error.message);
          return error.code;
        },
      )
      .then((outcome) => {
        entries.delete(offer.id);
        for (const step of offer.rest()) {
          if (step.kind === "given") {
            refuseGiven(options.descriptors(), step.given, over(offer.id));
          }
        }
        native.revokeOffer(options.descriptors(), offer.id);
        leases.leave(offer.owner);
        options.onEnd(outcome);
      });
    return fill;
  };

  return {
    open({ named, owner, group, alone, stallMs }) {
      if (isFilesIdentity(named.identity)) {
        throw new WeightlineError("Refused", "an identity with weightline.kind files is for models that are loaded", {
          field: "identity.extra_parameters",
          value: "weightline.kind=files",
          wayOut: "leave weightline.kind out, or load the files with mxctl load",
        });
      }
      checkCaps(group);
      checkFree(named, alone);
      const id = randomBytes(16).toString("hex");
      const offer = createOffer({ id, named, owner, stallMs });
      const ticket = { ticketId: randomBytes(16), secret: randomBytes(32) };
      native.grantOffer(options.descriptors(), { ...ticket, pid: owner.peer.pid, offer: id });
      entries.set(id, { group, offer, fill: start(offer, alone) });
      return { offerId: id, ticket };
    },
    given({ given, descriptors }) {
      if (given === undefined) {
        return;
      }
      const entry = entries.get(given.offer);
      if (entry === undefined || entry.offer.ended.aborted) {
        refuseGiven(options.descriptors(), given, over(given.offer));
        return;
      }
      entry.offer.post({ kind: "given", given, descriptors });
    },
    async seal(offerId, owner) {
      const { offer, fill } = entryOf(offerId, owner);
      const missing = [...offer.missing];
      if (offer.holding === undefined || missing.length > 0) {
        throw new WeightlineError(
          "InvalidArgument",
          offer.holding === undefined
            ? "the list of tensors was not given yet"
            : `${missing.length} segments were not given yet: ${missing.slice(0, 8).join(", ")}${missing.length > 8 ? ", ..." : ""}`,
          { field: "offer_id", value: offerId, wayOut: "give what is missing, then seal" },
        );
      }
      offer.post({ kind: "seal" });
      return fill.done;
    },
    async withdraw(offerId, owner) {
      const entry = entries.get(offerId);
      if (entry === undefined || entry.offer.owner !== owner) {
        return false;
      }
      entry.offer.end(
        new OfferEndedError("Cancelled", "the pod withdrew its offer", {
          field: "offer",
          value: offerId,
          wayOut: "offer it again, or load it on a node",
        }),
      );
      return entry.fill.done.then(
        () => false,
        () => true,
      );
    },
    async endOf(holding) {
      await entries.get(holding.id)?.fill.cancel();
    },
    count: () => entries.size,
    async close() {
      const running = [...entries.values()];
      for (const { offer } of running) {
        offer.end(
          new OfferEndedError("Unavailable", "the agent stops", { wayOut: "offer it again when the agent is back" }),
        );
      }
      await Promise.allSettled(running.map(({ fill }) => fill.done));
    },
  };
}
