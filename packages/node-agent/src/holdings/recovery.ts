import { rm, stat } from "node:fs/promises";
import { type Logger, toWeightlineError, WeightlineError } from "@weightline/runtime";
import { persistentOrder } from "../fills/persistent-order.ts";
import { readLayoutHeader } from "../layout-reader.ts";
import type { MoverClient } from "../mover/mover-client.ts";
import { type HoldingRecord, NewerRecordError, readRecord } from "../store/holding-record.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import type { Evictor } from "./evictor.ts";
import { chargeOf, type Holding } from "./holding.ts";
import type { HoldingRegistry } from "./holding-registry.ts";
import { recoveryStep } from "./holding-state.ts";
import type { MemoryAccount } from "./memory-account.ts";

export interface RecoveryOptions {
  store: StoreFolder;
  registry: HoldingRegistry;
  account: MemoryAccount;
  evictor: Evictor;
  mover: MoverClient;
  log: Logger;
  /** Goes on with a fill in the background. */
  resume: (holding: Holding) => void;
}

/** Bytes that checks read at the start: 0 unless an immutable flag was missing. */
export interface Recovered {
  complete: number;
  resumed: number;
  evicted: number;
  checkedBytes: number;
}

const PAGE_BYTES = 4096;

async function folderBytes(path: string): Promise<number> {
  const status = await stat(path).catch(() => undefined);
  return status === undefined ? 0 : status.blocks * 512 + PAGE_BYTES;
}

/**
 * Finds the store's holdings again: complete ones are served unread when their files carry the flag, and digested first
 * otherwise; unfinished ones go on; the store comes under its limit before anything is allocated.
 */
export async function recover(options: RecoveryOptions): Promise<Recovered> {
  const { store, registry, account, evictor, mover, log } = options;
  const result: Recovered = { complete: 0, resumed: 0, evicted: 0, checkedBytes: 0 };
  const { holdingIds, foreign } = await store.list();
  if (foreign.length > 0) {
    log.warn(
      { event: "foreign-files", files: foreign.slice(0, 20), count: foreign.length },
      "files in the store that are not ours are left alone",
    );
  }
  let foreignBytes = 0;
  const gone = new Set<string>();

  const evict = async (id: string, why: string) => {
    log.warn({ event: "evicted-at-start", holding: id, why }, "evicted at the start");
    const holding = registry.get(id);
    result.evicted += 1;
    gone.add(id);
    if (holding === undefined) {
      await evictor.discardFolder(id);
    } else {
      await evictor.evict(holding, 0);
    }
  };

  const adopt = async (id: string): Promise<Holding | undefined> => {
    const folder = store.holdingFolder(id);
    let record: HoldingRecord | undefined;
    try {
      record = await readRecord(folder);
    } catch (error) {
      if (error instanceof NewerRecordError) {
        foreignBytes += await folderBytes(folder);
        log.warn({ event: "newer-holding", holding: id }, error.message);
        return undefined;
      }
      await evict(id, toWeightlineError(error).message);
      return undefined;
    }
    if (record === undefined || record.identities.length === 0) {
      await evict(id, "it has no record");
      return undefined;
    }
    const holding = registry.adopt(id, record);
    holding.layout = await readLayoutHeader(folder).catch(() => undefined);
    const { layout } = holding;
    if (layout !== undefined) {
      holding.charge = chargeOf(layout.totalBytes, layout.layoutBytes, layout.chunkBytes, layout.segments.length);
    }
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
        return;
      }
      if (done.objectDigest === undefined || Buffer.compare(done.objectDigest, objectDigest) !== 0) {
        throw new WeightlineError("Corrupt", "its object digest is not the recorded one");
      }
      result.complete += 1;
    } catch (error) {
      await evict(holding.id, toWeightlineError(error).message);
    }
  };

  const adopted = (await Promise.all(holdingIds.map(adopt))).filter((holding) => holding !== undefined);
  account.setForeign(foreignBytes);

  // Under the limit first: unfinished ones go before complete ones, older before newer.
  const byWorth = adopted.toSorted(
    (a, b) =>
      Number(a.record.state === "complete") - Number(b.record.state === "complete") ||
      a.record.createdMs - b.record.createdMs,
  );
  for (const holding of byWorth) {
    if (account.usedBytes() <= account.limitBytes) {
      break;
    }
    await evict(holding.id, "the store is above its limit");
  }

  for (const holding of adopted) {
    if (gone.has(holding.id)) {
      continue;
    }
    switch (recoveryStep(holding.record)) {
      case "check":
        await check(holding);
        break;
      case "evict":
        await evict(holding.id, `it was ${holding.record.state}`);
        break;
      case "keep-damaged":
        break;
      case "resume-load":
      case "resume-transfer":
        if (holding.layout === undefined && holding.record.source.kind === "load") {
          await evict(holding.id, "its layout is gone");
        } else {
          result.resumed += 1;
          options.resume(holding);
        }
        break;
    }
  }
  await rm(`${store.path}/node.json.new`, { force: true });
  registry.changed();
  return result;
}
