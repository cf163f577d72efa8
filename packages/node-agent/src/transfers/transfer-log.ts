import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { type Transfer, TransferSchema, TransferState } from "@weightline/proto/common";
import type { MoverReport, WaitTimes } from "@weightline/rdma-native";
import type { LinkRate } from "./link-rate.ts";

/** How long an ended transfer is shown, and how many at most. */
const SHOWN_MS = 10 * 60_000;
const SHOWN_MAX = 500;

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
  }): TransferEntry;
  list(): Transfer[];
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

export function createTransferLog(node: string, linkRate: LinkRate): TransferLog {
  const transfers: Array<{ transfer: Transfer; startedAt: number; endedAt: number }> = [];
  let ratio = 0;

  const measure = (entry: { transfer: Transfer; startedAt: number }, report: MoverReport, resumedFrom: bigint) => {
    const { transfer } = entry;
    const seconds = Math.max(0.001, (performance.now() - entry.startedAt) / 1000);
    transfer.verifiedBytes = report.verifiedBytes;
    transfer.totalBytes = report.totalBytes > 0n ? report.totalBytes : transfer.totalBytes;
    transfer.networkBytes = report.networkBytes;
    transfer.refusedChunks = report.refusedChunks;
    transfer.bytesPerS = Number(report.verifiedBytes - resumedFrom) / seconds;
    transfer.blame = blameOf(report.waits);
    const rate = linkRate.current();
    transfer.percentOfBound = rate > 0 ? (100 * transfer.bytesPerS) / rate : 0;
  };

  const forget = () => {
    const now = performance.now();
    while (
      transfers.length > SHOWN_MAX ||
      (transfers[0] !== undefined && transfers[0].endedAt > 0 && now - transfers[0].endedAt > SHOWN_MS)
    ) {
      transfers.shift();
    }
  };

  return {
    start({ modelName, parent, holdingId, totalBytes, objectDigest }) {
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
      });
      const entry = { transfer, startedAt: performance.now(), endedAt: 0 };
      transfers.push(entry);
      forget();
      let resumedFrom: bigint | undefined;
      const take = (report: MoverReport) => {
        resumedFrom ??= report.verifiedBytes - min(report.verifiedBytes, report.networkBytes);
        measure(entry, report, resumedFrom);
      };
      return {
        progress: take,
        end(report, error, digest) {
          if (report !== undefined) {
            take(report);
          }
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
    list() {
      forget();
      return transfers.map(({ transfer }) => transfer);
    },
    lastBoundRatio: () => ratio,
  };
}

function min(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}
