import { rmSync } from "node:fs";
import { lstat, readdir, rm } from "node:fs/promises";
import { type ErrorCode, type Logger, toWeightlineError, WeightlineError } from "@weightline/runtime";
import { persistentOrder } from "../fills/persistent-order.ts";
import { type LayoutHeader, readLayoutHeader } from "../layout-reader.ts";
import type { MoverClient } from "../mover/mover-client.ts";
import { MoverLostError } from "../mover/mover-process.ts";
import { type HoldingRecord, NewerRecordError, readRecord } from "../store/holding-record.ts";
import { mapInSlices } from "../store/in-slices.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import type { Evictor } from "./evictor.ts";
import { chargeOf, type Holding, modelNameOf } from "./holding.ts";
import type { HoldingRegistry } from "./holding-registry.ts";
import { type RecoveryStep, recoveryStep } from "./holding-state.ts";
import type { MemoryAccount } from "./memory-account.ts";

export interface RecoveryOptions {
  store: StoreFolder;
  registry: HoldingRegistry;
  account: MemoryAccount;
  evictor: Evictor;
  mover: MoverClient;
  log: Logger;
  /** Goes on with a fill in the background, or fills a damaged holding again. */
  resume: (holding: Holding) => void;
}

/** What was done with the store's holdings. */
export interface Recovered {
  complete: number;
  resumed: number;
  evicted: number;
  /** Bytes that checks read at the start: 0 unless an immutable flag was missing. */
  checkedBytes: number;
  /** Folders that were left as they are: a newer agent's, or one that the mover died over. */
  untouched: number;
}

/** How long the start waits for the memory of one that is on its way out; a process may have it mapped for ever. */
const EVICT_PATIENCE_MS = 2000;
/** What a failed check must say for a holding to be deleted: its files are wrong, or not there. */
const AGAINST_THE_BYTES: readonly ErrorCode[] = ["Corrupt", "NotFound"];
/** One check waits for the mover's answer most of its time. */
const CHECKS_AT_ONCE = 8;
const BLOCK_BYTES = 512;
/** What a crash between writing and renaming leaves in a holding's folder. */
const HALF_WRITTEN = ["record.json.new", "layout.new"];

/** Bytes of memory that a folder's files take, whatever they are. */
async function folderBytes(path: string): Promise<number> {
  const entries = await readdir(path, { recursive: true, withFileTypes: true }).catch(() => []);
  const sizes = await Promise.all(
    entries.map(async ({ parentPath, name }) => {
      const status = await lstat(`${parentPath}/${name}`).catch(() => undefined);
      return (status?.blocks ?? 0) * BLOCK_BYTES;
    }),
  );
  return sizes.reduce((sum, bytes) => sum + bytes, 0);
}

/** A holding's folder, read. */
type Found =
  | { kind: "usable"; record: HoldingRecord; step: RecoveryStep; layout: LayoutHeader | undefined }
  /** A newer agent's: its bytes count, nothing else is done. */
  | { kind: "newer"; why: string }
  | { kind: "unusable"; why: string };

async function readFolder(folder: string): Promise<Found> {
  let record: HoldingRecord | undefined;
  try {
    record = readRecord(folder);
  } catch (error) {
    const why = toWeightlineError(error).message;
    return { kind: error instanceof NewerRecordError ? "newer" : "unusable", why };
  }
  const step = recoveryStep(record);
  if (record === undefined || record.identities.length === 0) {
    return { kind: "unusable", why: "it has no record" };
  }
  if (step === "evict") {
    return { kind: "unusable", why: `it was ${record.state}` };
  }
  let layout: LayoutHeader | undefined;
  try {
    layout = await readLayoutHeader(folder);
  } catch (error) {
    const known = toWeightlineError(error);
    if (known.code === "Refused") {
      return { kind: "newer", why: known.message };
    }
    // A transfer's first bytes are the layout: it may not have come yet.
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" || record.state !== "filling") {
      return { kind: "unusable", why: `its layout cannot be read: ${known.message}` };
    }
    if (record.source.kind !== "transfer") {
      return { kind: "unusable", why: "its layout is gone" };
    }
  }
  if (layout !== undefined && layout.digest !== record.layoutDigest) {
    return { kind: "unusable", why: "its layout is not the recorded one" };
  }
  return { kind: "usable", record, step, layout };
}

/**
 * Finds the store's holdings again: complete ones are served unread when their files carry the flag, and digested first
 * otherwise; unfinished ones go on; the store comes under its limit before anything is allocated. What cannot be used goes,
 * and keeps nothing else from being found.
 */
export async function recover(options: RecoveryOptions): Promise<Recovered> {
  const { store, registry, account, evictor, mover, log } = options;
  const result: Recovered = { complete: 0, resumed: 0, evicted: 0, checkedBytes: 0, untouched: 0 };
  const { holdingIds, foreign } = await store.list();
  if (foreign.length > 0) {
    log.warn(
      { event: "foreign-files", files: foreign.slice(0, 20), count: foreign.length },
      "files in the store that are not ours are left alone",
    );
  }

  const evict = async (holding: Holding, why: string) => {
    log.warn(
      { event: "evicted-at-start", holding: holding.id, model: modelNameOf(holding), why },
      "evicted at the start",
    );
    result.evicted += 1;
    // One that cannot go must not keep the others from being served: its bytes count until it has gone.
    const { pending } = await evictor.evict(holding, EVICT_PATIENCE_MS).catch((error: unknown) => {
      log.error(
        { event: "eviction-failed", holding: holding.id, error: toWeightlineError(error).message },
        "could not be evicted",
      );
      return { pending: false };
    });
    if (pending) {
      log.warn(
        { event: "eviction-waits", holding: holding.id, model: modelNameOf(holding) },
        "a process has it mapped: its memory returns when that ends",
      );
    }
  };

  const leaveAlone = async (id: string, why: string) => {
    const bytes = await folderBytes(store.holdingFolder(id));
    account.addForeign(bytes);
    result.untouched += 1;
    log.warn({ event: "holding-untouched", holding: id, bytes, why }, "left as it is: its bytes count");
  };

  /** Gives what cannot be used a state in which it is nobody's any more, with the bytes that it takes. */
  const adoptUnusable = async (id: string): Promise<Holding> => {
    const holding = registry.adopt(id, {
      identities: [],
      state: "evicting",
      source: { kind: "offer" },
      origin: id,
      layoutDigest: "0".repeat(64),
      objectDigest: "",
      createdMs: 0,
    });
    holding.charge = await folderBytes(store.holdingFolder(id));
    return holding;
  };

  const adopt = (id: string, record: HoldingRecord, layout: LayoutHeader | undefined): Holding => {
    const holding = registry.adopt(id, record);
    holding.layout = layout;
    if (layout !== undefined) {
      holding.charge = chargeOf(layout.totalBytes, layout.layoutBytes, layout.chunkBytes, layout.segments.length);
    }
    // What was proved before the crash may have been changed since: it is proved again before the fill goes on.
    holding.suspect = record.state === "filling";
    return holding;
  };

  const check = async (holding: Holding): Promise<void> => {
    try {
      const objectDigest = Buffer.from(holding.record.objectDigest, "hex");
      const done = await persistentOrder(mover, {
        kind: "check",
        holdingId: holding.id,
        trustFlag: true,
        chunks: [],
        objectDigest,
      });
      result.checkedBytes += Number(done.readBytes);
      holding.verifiedBytes = Number(done.verifiedBytes);
      if ((done.wrongChunks ?? []).length > 0) {
        log.error(
          { event: "holding-damaged", holding: holding.id, chunks: done.wrongChunks?.length },
          "damaged: chunks do not have their digest",
        );
        await registry.apply(holding, "damage-found");
        options.resume(holding);
        return;
      }
      if (done.objectDigest === undefined || Buffer.compare(done.objectDigest, objectDigest) !== 0) {
        throw new WeightlineError("Corrupt", "its object digest is not the recorded one");
      }
      result.complete += 1;
    } catch (error) {
      const known = toWeightlineError(error);
      if (AGAINST_THE_BYTES.includes(known.code)) {
        await evict(holding, known.message);
        return;
      }
      // What else goes wrong is no proof against the bytes: nothing is deleted for it, and nothing unproved is served.
      registry.remove(holding.id);
      const why =
        error instanceof MoverLostError ? "the mover ended again and again while it was checked" : known.message;
      await leaveAlone(holding.id, `${why}; the next start tries again`);
    }
  };

  const folders = await mapInSlices(holdingIds, async (id) => ({
    id,
    found: await readFolder(store.holdingFolder(id)),
  }));
  const usable: Array<{ holding: Holding; step: RecoveryStep }> = [];
  const unusable: Array<{ holding: Holding; why: string }> = [];
  for (const { id, found } of folders) {
    if (found.kind === "newer") {
      await leaveAlone(id, found.why);
    } else if (found.kind === "unusable") {
      unusable.push({ holding: await adoptUnusable(id), why: found.why });
    } else {
      usable.push({ holding: adopt(id, found.record, found.layout), step: found.step });
    }
  }
  await mapInSlices(usable, ({ holding }) => {
    for (const name of HALF_WRITTEN) {
      rmSync(`${store.holdingFolder(holding.id)}/${name}`, { force: true });
    }
  });
  await rm(`${store.path}/node.json.new`, { force: true });
  await Promise.all(unusable.map(({ holding, why }) => evict(holding, why)));

  // Under the limit: unfinished ones go before damaged and complete ones, older before newer.
  const worth = ({ record }: Holding) => (record.state === "filling" ? 0 : record.state === "damaged" ? 1 : 2);
  const byWorth = usable
    .map(({ holding }) => holding)
    .sort((a, b) => worth(a) - worth(b) || a.record.createdMs - b.record.createdMs);
  for (const holding of byWorth) {
    if (account.usedBytes() <= account.limitBytes) {
      break;
    }
    const freed = await evictor.evictUnused(holding).catch((error: unknown) => {
      log.error(
        { event: "eviction-failed", holding: holding.id, error: toWeightlineError(error).message },
        "could not be evicted",
      );
      return false;
    });
    if (freed) {
      result.evicted += 1;
    } else {
      log.warn(
        { event: "eviction-waits", holding: holding.id, model: modelNameOf(holding) },
        "stays although the store is above its limit: a process has it mapped",
      );
    }
  }
  if (account.usedBytes() > account.limitBytes) {
    log.error(
      { event: "store-above-limit", used_bytes: account.usedBytes(), limit_bytes: account.limitBytes },
      "the store is still above its limit: nothing new is taken in",
    );
  }

  const left = usable.filter(({ holding }) => registry.get(holding.id) !== undefined);
  const complete = left.flatMap(({ holding, step }) => (step === "check" ? [holding] : [])).values();
  const checkers = Array.from({ length: CHECKS_AT_ONCE }, async () => {
    for (const holding of complete) {
      await check(holding);
    }
  });
  await Promise.all(checkers);
  for (const { holding, step } of left) {
    if (step === "resume-load" || step === "resume-transfer") {
      result.resumed += 1;
    }
    if (step !== "check") {
      options.resume(holding);
    }
  }
  registry.changed();
  return result;
}
