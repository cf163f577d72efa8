import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { type Transfer, TransferSchema, TransferState, TransferWaitsSchema } from "@weightline/proto/common";
import type { MoverReport, WaitTimes } from "@weightline/rdma-native";
import type { LinkRate } from "./link-rate.ts";
import { createPhaseClock } from "./phase-clock.ts";

/** How long an ended transfer is shown without being asked for, and how many are kept at most. */
const SHOWN_MS = 10 * 60_000;
const KEPT_MAX = 500;

/** A transfer that runs. */
export interface TransferEntry {
  progress(report: MoverReport): void;
  /** `error` empty: done. */
  end(report: MoverReport | undefined, error: string, objectDigest: Uint8Array): void;
}

/** This node's transfers, running and ended, as `mxctl transfers` shows them. */
export interface TransferLog {
  start(transfer: {
    modelName: string;
    parent: string;
    holdingId: string;
    totalBytes: bigint;
    objectDigest: Uint8Array;
    /** Seconds until this parent was chosen, and until it opened. */
    findingSeconds: number;
    openingSeconds: number;
  }): TransferEntry;
  /** Running ones, those of the last minutes, and at least the `last` ended ones, however long ago. */
  list(last?: number): Transfer[];
  /** bound/achieved of the last one that ended well; 0 before. */
  lastBoundRatio(): number;
}

/** The cause that cost most time, or "" before anything was waited for. */
export function blameOf(waits: WaitTimes): string {
  const causes: Array<[string, number]> = [
    ["parent", waits.parentSeconds],
    ["wire", waits.wireSeconds],
    ["verify", waits.verifySeconds],
    ["store", waits.storeSeconds],
  ];
  const [name, seconds] = causes.reduce((a, b) => (b[1] > a[1] ? b : a));
  return seconds > 0 ? name : "";
}

interface Entry {
  transfer: Transfer;
  startedAt: number;
  /** 0 while it runs. */
  endedAt: number;
}

export function createTransferLog(node: string, linkRate: LinkRate): TransferLog {
  const transfers: Entry[] = [];
  let ratio = 0;

  const measure = (entry: Entry, report: MoverReport, resumedFrom: bigint) => {
    const { transfer } = entry;
    const seconds = Math.max(0.001, (performance.now() - entry.startedAt) / 1000);
    transfer.verifiedBytes = report.verifiedBytes;
    transfer.totalBytes = report.totalBytes > 0n ? report.totalBytes : transfer.totalBytes;
    transfer.networkBytes = report.networkBytes;
    transfer.refusedChunks = report.refusedChunks;
    transfer.bytesPerS = Number(report.verifiedBytes - resumedFrom) / seconds;
    transfer.blame = blameOf(report.waits);
    const { parentSeconds, wireSeconds, verifySeconds, storeSeconds } = report.waits;
    transfer.waits = create(TransferWaitsSchema, {
      parentS: parentSeconds,
      wireS: wireSeconds,
      verifyS: verifySeconds,
      storeS: storeSeconds,
    });
    const rate = linkRate.current();
    transfer.percentOfBound = rate > 0 ? (100 * transfer.bytesPerS) / rate : 0;
  };

  /** Running ones are never forgotten; there are as many as fills. */
  const forget = () => {
    const oldest = transfers.length > KEPT_MAX ? transfers.findIndex(({ endedAt }) => endedAt > 0) : -1;
    if (oldest >= 0) {
      transfers.splice(oldest, 1);
    }
  };

  return {
    start({ modelName, parent, holdingId, totalBytes, objectDigest, findingSeconds, openingSeconds }) {
      const transfer = create(TransferSchema, {
        transferId: randomUUID(),
        modelName,
        node,
        parent,
        holdingId,
        totalBytes,
        objectDigest,
        transport: "stream",
        state: TransferState.RUNNING,
        startedMs: BigInt(Date.now()),
        phases: { findingS: findingSeconds, openingS: openingSeconds },
      });
      const entry: Entry = { transfer, startedAt: performance.now(), endedAt: 0 };
      const clock = createPhaseClock(entry.startedAt);
      transfers.push(entry);
      forget();
      let resumedFrom: bigint | undefined;
      const take = (report: MoverReport) => {
        resumedFrom ??= report.verifiedBytes - min(report.verifiedBytes, report.networkBytes);
        measure(entry, report, resumedFrom);
      };
      const mark = () => Object.assign(transfer.phases ?? {}, clock.phases(performance.now()));
      return {
        progress(report) {
          take(report);
          clock.saw(report, performance.now());
          mark();
        },
        end(report, error, digest) {
          if (report !== undefined) {
            take(report);
          }
          clock.end(performance.now());
          mark();
          entry.endedAt = performance.now();
          transfer.endedMs = BigInt(Date.now());
          transfer.state = error === "" ? TransferState.DONE : TransferState.FAILED;
          transfer.error = error;
          if (error === "") {
            transfer.objectDigest = digest;
            linkRate.saw(transfer.bytesPerS);
            const rate = linkRate.current();
            transfer.percentOfBound = rate > 0 ? (100 * transfer.bytesPerS) / rate : 0;
            ratio = transfer.percentOfBound / 100;
          }
        },
      };
    },
    list(last = 0) {
      const now = performance.now();
      const ended = transfers.filter(({ endedAt }) => endedAt > 0).sort((a, b) => b.endedAt - a.endedAt);
      const asked = new Set(ended.slice(0, last));
      return transfers
        .filter((entry) => entry.endedAt === 0 || now - entry.endedAt <= SHOWN_MS || asked.has(entry))
        .map(({ transfer }) => transfer);
    },
    lastBoundRatio: () => ratio,
  };
}

function min(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}
