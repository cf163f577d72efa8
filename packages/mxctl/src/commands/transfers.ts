import { setTimeout as sleep } from "node:timers/promises";
import { enumName } from "@weightline/proto";
import { type Transfer, TransferState, TransferStateSchema } from "@weightline/proto/common";
import { formatByteSize, WeightlineError } from "@weightline/runtime/client";
import { withControlPlane } from "../clients.ts";
import { type Column, print, printable, printLine, printRows } from "../output/output.ts";
import { waiting } from "../output/waiting.ts";
import { readWhole, type Settings } from "../settings.ts";

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
    holding_id: transfer.holdingId,
    phases: {
      finding_s: milli(transfer.phases?.findingS),
      opening_s: milli(transfer.phases?.openingS),
      layout_s: milli(transfer.phases?.layoutS),
      first_byte_s: milli(transfer.phases?.firstByteS),
      receiving_s: milli(transfer.phases?.receivingS),
      finishing_s: milli(transfer.phases?.finishingS),
    },
    waits: {
      parent_s: milli(transfer.waits?.parentS),
      wire_s: milli(transfer.waits?.wireS),
      verify_s: milli(transfer.waits?.verifyS),
      store_s: milli(transfer.waits?.storeS),
    },
  };
}

type Entry = ReturnType<typeof toEntry>;

/** Seconds to the ms; 0 from an agent that does not tell. */
function milli(seconds = 0): number {
  return Math.round(seconds * 1000) / 1000;
}

const CLEAR_SCREEN = "\u001b[2J\u001b[H";

const COLUMNS: readonly Column<Entry>[] = [
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
];

function time(title: string, seconds: (row: Entry) => number): Column<Entry> {
  return { title, right: true, value: (row) => seconds(row).toFixed(2) };
}

/** Ended ones: where their seconds went, and what the streams waited for. */
const LAST_COLUMNS: readonly Column<Entry>[] = [
  { title: "ENDED", value: (row) => new Date(Number(row.ended_ms)).toISOString().slice(0, 19) },
  { title: "MODEL", value: (row) => row.model_name },
  { title: "NODE", value: (row) => row.node },
  { title: "FROM", value: (row) => row.parent },
  { title: "STATE", value: (row) => row.state },
  { title: "SIZE", right: true, value: (row) => formatByteSize(row.total_bytes) },
  { title: "RATE", right: true, value: (row) => `${formatByteSize(row.bytes_per_s)}/s` },
  time("FIND s", ({ phases }) => phases.finding_s),
  time("OPEN s", ({ phases }) => phases.opening_s),
  time("LAYOUT s", ({ phases }) => phases.layout_s),
  time("FIRST s", ({ phases }) => phases.first_byte_s),
  time("RECEIVE s", ({ phases }) => phases.receiving_s),
  time("FINISH s", ({ phases }) => phases.finishing_s),
  {
    title: "WAITED parent/wire/verify/store s",
    value: ({ waits }) =>
      [waits.parent_s, waits.wire_s, waits.verify_s, waits.store_s].map((seconds) => seconds.toFixed(2)).join("/"),
  },
  { title: "BLAME", value: (row) => row.blame },
  { title: "ERROR", value: (row) => row.error },
];

async function ask(settings: Settings, last: number): Promise<Entry[]> {
  const { transfers: list, silentNodes } = await waiting(
    "asking the control plane",
    withControlPlane(settings, (client) => client.listTransfers({ last })),
  );
  if (silentNodes.length > 0) {
    process.stderr.write(`mxctl: did not answer: ${printable(silentNodes.join(", "))}\n`);
  }
  return list.filter(({ state }) => last === 0 || state !== TransferState.RUNNING).map(toEntry);
}

const DEFAULT_LAST = 10;
const LAST_MAX = 500;

async function showLast(settings: Settings, last: number): Promise<void> {
  const ended = await ask(settings, last);
  const rows = ended.sort((a, b) => Number(b.ended_ms - a.ended_ms)).slice(0, last);
  await printRows(settings.output, rows, rows, LAST_COLUMNS, "no transfer has ended yet");
}

async function show(settings: Settings, watch: boolean, isScreen: boolean): Promise<void> {
  const rows = await ask(settings, 0);
  if (watch && isScreen) {
    await print(CLEAR_SCREEN);
  } else if (watch && settings.output === "yaml") {
    await print("---\n");
  }
  await printRows(settings.output, rows, rows, COLUMNS, "no transfers in the last ten minutes");
}

/** One JSON array a line, so that what reads a pipe knows where each second ends. */
async function watchLines(settings: Settings): Promise<never> {
  while (true) {
    await printLine(await ask(settings, 0));
    await sleep(WATCH_MS);
  }
}

/** `--last` alone is `true`. */
export async function transfers(
  settings: Settings,
  { watch, last }: { watch?: boolean; last?: string | true },
): Promise<void> {
  if (last !== undefined) {
    if (watch === true) {
      throw new WeightlineError("InvalidArgument", "--last shows what has ended, --watch what runs: give one of them", {
        field: "--last",
        wayOut: "leave --watch out",
      });
    }
    await showLast(settings, last === true ? DEFAULT_LAST : readWhole(last, "--last", LAST_MAX));
    return;
  }
  if (watch === true && settings.output === "json") {
    await watchLines(settings);
  }
  const isScreen = process.stdout.isTTY === true && (settings.output === "table" || settings.output === "wide");
  await show(settings, watch === true, isScreen);
  while (watch === true) {
    await sleep(WATCH_MS);
    await show(settings, true, isScreen);
  }
}
