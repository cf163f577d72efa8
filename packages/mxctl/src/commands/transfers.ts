import { setTimeout as sleep } from "node:timers/promises";
import { enumName } from "@weightline/proto";
import { type Transfer, TransferStateSchema } from "@weightline/proto/common";
import { formatByteSize } from "@weightline/runtime/client";
import { withControlPlane } from "../clients.ts";
import { print, printable, printRows } from "../output/output.ts";
import type { Settings } from "../settings.ts";

const WATCH_MS = 1000;

function toEntry(transfer: Transfer) {
  return {
    object_digest: Buffer.from(transfer.objectDigest).toString("hex"),
    model_name: transfer.modelName,
    node: transfer.node,
    parent: transfer.parent,
    transport: transfer.transport,
    state: enumName(TransferStateSchema, transfer.state),
    verified_bytes: transfer.verifiedBytes,
    total_bytes: transfer.totalBytes,
    bytes_per_s: Math.round(transfer.bytesPerS),
    percent_of_bound: Math.round(transfer.percentOfBound * 10) / 10,
    blame: transfer.blame,
    network_bytes: transfer.networkBytes,
    refused_chunks: transfer.refusedChunks,
    started_ms: transfer.startedMs,
    ended_ms: transfer.endedMs,
    error: transfer.error,
  };
}

const CLEAR_SCREEN = "\u001b[2J\u001b[H";

async function show(settings: Settings, clear: boolean): Promise<void> {
  const { transfers: list, silentNodes } = await withControlPlane(settings, (client) => client.listTransfers({}));
  if (clear) {
    await print(CLEAR_SCREEN);
  }
  const rows = list.map(toEntry);
  await printRows(
    settings.output,
    rows,
    rows,
    [
      { title: "MODEL", value: (row) => row.model_name },
      { title: "NODE", value: (row) => row.node },
      { title: "FROM", value: (row) => row.parent },
      { title: "VIA", value: (row) => row.transport },
      { title: "STATE", value: (row) => row.state },
      {
        title: "VERIFIED",
        right: true,
        value: (row) => `${formatByteSize(row.verified_bytes)} / ${formatByteSize(row.total_bytes)}`,
      },
      { title: "RATE", right: true, value: (row) => `${formatByteSize(row.bytes_per_s)}/s` },
      {
        title: "OF BOUND",
        right: true,
        value: (row) => (row.percent_of_bound > 0 ? `${row.percent_of_bound.toFixed(1)} %` : "-"),
      },
      { title: "BLAME", value: (row) => row.blame },
      { title: "REFUSED", right: true, wide: true, value: (row) => String(row.refused_chunks) },
      { title: "ERROR", wide: true, value: (row) => row.error },
    ],
    "no transfers in the last ten minutes",
  );
  if (silentNodes.length > 0) {
    process.stderr.write(`mxctl: did not answer: ${printable(silentNodes.join(", "))}\n`);
  }
}

export async function transfers(settings: Settings, { watch }: { watch?: boolean }): Promise<void> {
  const isScreen = process.stdout.isTTY === true && (settings.output === "table" || settings.output === "wide");
  await show(settings, watch === true && isScreen);
  while (watch === true) {
    await sleep(WATCH_MS);
    await show(settings, isScreen);
  }
}
