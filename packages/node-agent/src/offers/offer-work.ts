import { close } from "node:fs";
import {
  type DescriptorServerHandle,
  type DigestAlgorithm,
  type GivenDescriptor,
  type GivenMemory,
  native,
} from "@weightline/rdma-native";
import { type Logger, toWeightlineError, WeightlineError } from "@weightline/runtime";
import type { Progress } from "../fills/fill-board.ts";
import { progressOf } from "../fills/load.ts";
import { beginHolding, mergeWithTwin, type NewHoldingOptions } from "../fills/new-holding.ts";
import { persistentOrder } from "../fills/persistent-order.ts";
import type { Evictor } from "../holdings/evictor.ts";
import type { Holding } from "../holdings/holding.ts";
import type { MoverClient } from "../mover/mover-client.ts";
import { type Offer, OfferEndedError, type OfferStep } from "./offer.ts";

export interface OfferWorkOptions extends NewHoldingOptions {
  evictor: Evictor;
  mover: MoverClient;
  log: Logger;
  threads: number;
  algorithm: DigestAlgorithm;
  descriptors: () => DescriptorServerHandle;
}

type Report = (progress: Partial<Progress>) => void;

/** The descriptor socket's form of an error. */
function refusalText(error: WeightlineError): string {
  const { code, message, field, value, limit, wayOut } = error;
  return JSON.stringify({ code, message, field, value, limit, way_out: wayOut });
}

/** Answers a descriptor that no offer takes, and lets it go. */
export function refuseGiven(server: DescriptorServerHandle, given: GivenDescriptor, error: WeightlineError): void {
  if (given.descriptor >= 0) {
    native.discardGiven(server, given.descriptor);
  }
  native.answerGiven(server, given.connection, refusalText(error), "");
}

/** Carries an offer from its list of tensors to the complete holding. */
export interface OfferWork {
  run(offer: Offer, report: Report, signal: AbortSignal): Promise<Holding>;
}

export function createOfferWork(options: OfferWorkOptions): OfferWork {
  const { registry, evictor, mover, log, threads, algorithm } = options;

  /**
   * Seals what was given, then does `work` with it. It stays open until the mover has ended with it; what was not accepted
   * may be anything, and is closed where it can do no harm.
   */
  const withMemory = async <Result>(
    step: OfferStep & { kind: "given" },
    bytes: bigint,
    work: (memory: GivenMemory) => Promise<Result>,
  ): Promise<Result> => {
    const { descriptor } = step.given;
    if (descriptor < 0) {
      throw new WeightlineError("Refused", `${step.descriptors} descriptors came, not one`, {
        field: "descriptors",
        value: String(step.descriptors),
        limit: "1",
        wayOut: "send one memfd with each message",
      });
    }
    let accepted = false;
    try {
      await native.sealMemory(descriptor, bytes);
      accepted = true;
      return await work({ agent: process.pid, descriptor, bytes });
    } finally {
      if (accepted) {
        close(descriptor, () => undefined);
      } else {
        native.discardGiven(options.descriptors(), descriptor);
      }
    }
  };

  const takeList = async (offer: Offer, step: OfferStep & { kind: "given" }, signal: AbortSignal): Promise<string> => {
    const { bytes } = step.given;
    const scanned = await withMemory(step, bytes, async (memory) => {
      const done = await persistentOrder(
        mover,
        { kind: "arrange", holdingId: offer.id, memory, algorithm },
        { signal },
      );
      return done.scanned;
    });
    if (scanned === undefined) {
      throw new WeightlineError("Internal", "the mover arranged without a result");
    }
    const holding = await beginHolding(options, offer.id, scanned, offer.named, { kind: "offer" });
    offer.holding = holding;
    holding.layout?.segments.forEach(({ bytes: size }, segment) => {
      if (size > 0) {
        offer.missing.add(segment);
      }
    });
    return JSON.stringify({
      ok: true,
      layout_bytes: Number(scanned.layoutBytes),
      total_bytes: Number(scanned.totalBytes),
      segments: holding.layout?.segments.length,
    });
  };

  const takeSegment = async (
    offer: Offer,
    holding: Holding,
    step: OfferStep & { kind: "given" },
    report: Report,
    signal: AbortSignal,
  ): Promise<string> => {
    const { segment } = step.given;
    const size = BigInt(holding.layout?.segments[segment]?.bytes ?? 0);
    await withMemory(step, size, async (memory) => {
      const onProgress = progressOf("offered", "", holding, report);
      const done = await persistentOrder(
        mover,
        { kind: "copy", holdingId: offer.id, segment, memory, threads },
        { signal, onProgress },
      );
      holding.verifiedBytes = Number(done.verifiedBytes);
    });
    offer.missing.delete(segment);
    registry.changed();
    return JSON.stringify({ ok: true, segment, missing: offer.missing.size });
  };

  /** What is given at the wrong time; the offer goes on. */
  const misplaced = (offer: Offer, given: GivenDescriptor): WeightlineError | undefined => {
    if (given.what === "tensors") {
      return offer.holding === undefined
        ? undefined
        : new WeightlineError("AlreadyExists", "this offer has its list of tensors", { field: "what" });
    }
    if (offer.holding === undefined) {
      return new WeightlineError("Refused", "the list of tensors comes before the first segment", {
        field: "what",
        value: "segment",
        wayOut: "give the list of tensors first",
      });
    }
    if (!offer.missing.has(given.segment)) {
      const segments = offer.holding.layout?.segments.length ?? 0;
      return new WeightlineError(
        "InvalidArgument",
        given.segment < segments
          ? `segment ${given.segment} is there already, or has no bytes`
          : `the layout has ${segments} segments, there is no segment ${given.segment}`,
        { field: "segment", value: String(given.segment), limit: [...offer.missing].slice(0, 8).join(", ") },
      );
    }
    return undefined;
  };

  const take = async (offer: Offer, step: OfferStep & { kind: "given" }, report: Report, signal: AbortSignal) => {
    const { given } = step;
    const server = options.descriptors();
    const wrong = misplaced(offer, given);
    if (wrong !== undefined) {
      refuseGiven(server, given, wrong);
      return;
    }
    try {
      const answer =
        offer.holding === undefined
          ? await takeList(offer, step, signal)
          : await takeSegment(offer, offer.holding, step, report, signal);
      native.answerGiven(server, given.connection, answer, given.what === "tensors" ? offer.id : "");
    } catch (error) {
      const known = toWeightlineError(signal.aborted ? signal.reason : error);
      native.answerGiven(server, given.connection, refusalText(known), "");
      throw known;
    }
  };

  const finish = async (offer: Offer, holding: Holding, signal: AbortSignal): Promise<Holding> => {
    const done = await persistentOrder(mover, { kind: "finish", holdingId: offer.id }, { signal });
    const digest = Buffer.from(done.objectDigest ?? new Uint8Array()).toString("hex");
    holding.verifiedBytes = Number(done.verifiedBytes);
    if (holding.suspect) {
      // A child found it; the pod's memory, from which it could be mended, has been given back.
      throw new WeightlineError("Corrupt", `what was verified of offer ${offer.id} was damaged while the rest came`, {
        field: "offer_id",
        value: offer.id,
        wayOut: "offer it again",
      });
    }
    const twin = await mergeWithTwin(registry, evictor, holding, offer.named, digest);
    if (twin === undefined) {
      await registry.apply(holding, "filled", (record) => {
        record.objectDigest = digest;
      });
    }
    return twin ?? holding;
  };

  /** Nothing of an offer that ended stays. After the agent's stop its record says what it was, and the next start deletes it. */
  const abandon = async (offer: Offer): Promise<void> => {
    if (mover.closed()) {
      return;
    }
    if (offer.holding !== undefined) {
      await evictor.evict(offer.holding, 0);
      return;
    }
    await evictor
      .discardFolder(offer.id)
      .catch((error: unknown) =>
        log.warn(
          { event: "folder-left", holding: offer.id, error: toWeightlineError(error).message },
          "an ended offer's folder stays",
        ),
      );
  };

  return {
    async run(offer, report, outer) {
      const signal = AbortSignal.any([outer, offer.ended]);
      try {
        report({ state: "offered" });
        for (;;) {
          const step = await offer.next(signal);
          if (step.kind === "given") {
            await take(offer, step, report, signal);
          } else if (offer.holding !== undefined) {
            return await finish(offer, offer.holding, signal);
          }
        }
      } catch (error) {
        const known = toWeightlineError(signal.aborted ? signal.reason : error);
        const ended =
          known instanceof OfferEndedError
            ? known
            : new OfferEndedError(known.code, `the offer ended: ${known.message}`, { ...known, cause: known });
        log.warn(
          {
            event: "offer-ended",
            holding: offer.id,
            process: offer.owner.peer.pid,
            code: ended.code,
            error: ended.message,
          },
          "an offer ended",
        );
        offer.end(ended);
        await abandon(offer);
        throw ended;
      }
    },
  };
}
