import { readdirSync, readFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";

/** One measured way of doing a thing. */
export interface Series {
  name: string;
  /** One value per run. */
  values: number[];
  unit: string;
}

/** A bench's outcome: its figures, and whether each asked-for figure was reached. */
export interface BenchResult {
  bench: string;
  machine: string;
  series: Series[];
  checks: Array<{ what: string; asked: string; best: number; median: number; reached: boolean }>;
  notes: string[];
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

/** The processor, its cores and the memory: absolute figures mean nothing without. */
export function machineName(): string {
  const [first] = cpus();
  return `${first?.model.trim()}, ${cpus().length} cores, ${(totalmem() / 2 ** 30).toFixed(1)} GiB`;
}

/** CPU seconds of a process and its children that have ended, by /proc. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/**
 * CPU seconds of a process's threads that live now, to the nanosecond: work that timers wake on the tick is counted wrongly
 * by /proc/PID/stat, which samples at the tick.
 */
export function exactCpuSeconds(pid: number): number {
  const spent = readdirSync(`/proc/${pid}/task`).map((thread) =>
    Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" ")[0]),
  );
  return spent.reduce((sum, ns) => sum + ns, 0) / 1e9;
}

/** Proportional set size of a process, in bytes. */
export function pssBytes(pid: number): number {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1024;
}

/** A check of ratios against a least (or most) value; the median decides, the best is shown. */
export function check(
  what: string,
  values: readonly number[],
  asked: { atLeast: number } | { atMost: number },
): BenchResult["checks"][number] {
  const middle = median(values);
  if ("atLeast" in asked) {
    return {
      what,
      asked: `at least ${asked.atLeast}`,
      best: Math.max(...values),
      median: middle,
      reached: middle >= asked.atLeast,
    };
  }
  return {
    what,
    asked: `at most ${asked.atMost}`,
    best: Math.min(...values),
    median: middle,
    reached: middle <= asked.atMost,
  };
}

function round(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(3) : value.toFixed(5);
}

/** The result as a table for people. */
export function toText(result: BenchResult): string {
  const lines = [`bench ${result.bench} on ${result.machine}`, ""];
  for (const { name, values, unit } of result.series) {
    lines.push(
      `  ${name.padEnd(58)} median ${round(median(values)).padStart(9)}  best ${round(Math.min(...values)).padStart(9)}  worst ${round(Math.max(...values)).padStart(9)} ${unit} (${values.length} runs)`,
    );
  }
  lines.push("");
  for (const { what, asked, best, median: middle, reached } of result.checks) {
    lines.push(
      `  ${reached ? "reached" : "MISSED "}  ${what}: median ${round(middle)}, best ${round(best)}; asked: ${asked}`,
    );
  }
  return [...lines, ...result.notes.map((note) => `  note: ${note}`), ""].join("\n");
}
