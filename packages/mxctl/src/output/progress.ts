import type { FillProgress } from "@weightline/proto/common";
import { formatByteSize } from "@weightline/runtime/client";
import { printable } from "./output.ts";

/** Shows how far something is, on standard error: a bar on a terminal, else a line every few seconds. */
export interface ProgressDisplay {
  show(label: string, progress: FillProgress): void;
  end(): void;
}

const BAR_CELLS = 30;
const PLAIN_INTERVAL_MS = 5000;

function describe(progress: FillProgress): string {
  const { state, parent, verifiedBytes, totalBytes, bytesPerS } = progress;
  const from = parent === "" ? "" : ` from ${printable(parent)}`;
  if (totalBytes === 0n) {
    return `${state}${from}`;
  }
  const rate = bytesPerS > 0 ? ` at ${formatByteSize(Math.round(bytesPerS))}/s` : "";
  return `${state}${from} ${formatByteSize(verifiedBytes)} of ${formatByteSize(totalBytes)}${rate}${left(progress)}`;
}

/** ", 12 s left" at the mean rate so far. */
function left({ verifiedBytes, totalBytes, bytesPerS }: FillProgress): string {
  if (bytesPerS <= 0 || verifiedBytes >= totalBytes) {
    return "";
  }
  const seconds = Math.ceil(Number(totalBytes - verifiedBytes) / bytesPerS);
  return `, ${seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`} left`;
}

function bar({ verifiedBytes, totalBytes }: FillProgress): string {
  const share = totalBytes === 0n ? 0 : Number(verifiedBytes) / Number(totalBytes);
  const full = Math.round(share * BAR_CELLS);
  return `[${"#".repeat(full)}${".".repeat(BAR_CELLS - full)}] ${String(Math.floor(share * 100)).padStart(3)}%`;
}

function prefix(label: string): string {
  return label === "" ? "" : `${printable(label)}: `;
}

/** `stream` may be any; what is written there is for people alone. */
export function createProgressDisplay(stream: NodeJS.WriteStream = process.stderr): ProgressDisplay {
  const terminal = stream.isTTY === true;
  const startedAt = performance.now();
  let lastAt = startedAt;
  let shown = false;
  return {
    show(label, progress) {
      if (terminal) {
        shown = true;
        // A line that wraps cannot be taken back.
        const line = `${prefix(label)}${bar(progress)} ${describe(progress)}`.slice(0, (stream.columns || 80) - 1);
        stream.write(`\r\u001b[2K${line}`);
      } else if (performance.now() - lastAt > PLAIN_INTERVAL_MS) {
        lastAt = performance.now();
        stream.write(`${prefix(label)}${describe(progress)}\n`);
      }
    },
    end() {
      if (shown) {
        shown = false;
        stream.write("\r\u001b[2K");
      }
    },
  };
}
