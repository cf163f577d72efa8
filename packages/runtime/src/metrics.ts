import { readdirSync, readFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { Counter, Gauge, Histogram, Registry } from "prom-client";

/** A program's metrics. Names carry their unit; label values are bounded. */
export interface Metrics {
  counter<Label extends string = never>(name: string, help: string, labels?: readonly Label[]): Counter<Label>;
  gauge<Label extends string = never>(name: string, help: string, labels?: readonly Label[]): Gauge<Label>;
  histogram<Label extends string = never>(
    name: string,
    help: string,
    bucketsSeconds: readonly number[],
    labels?: readonly Label[],
  ): Histogram<Label>;
  /**
   * Runs before each scrape, to set gauges from the program's state. One that fails or takes longer than
   * {@link COLLECT_TIMEOUT_MS} leaves its gauges as they are; the scrape goes on.
   */
  onCollect(update: () => void | Promise<void>): void;
  /** The exposition body and its type, for what a scraper's Accept header asks for. */
  render(accept: string): Promise<{ contentType: string; body: string }>;
}

const TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const NANOSECONDS = 1e9;
/** What is not counted by then is not waited for: a scraper gives up after some seconds, and would lose all the rest. */
export const COLLECT_TIMEOUT_MS = 2000;
/** How finely the event loop's delay is measured; the monitor counts its own pause as delay. */
const DELAY_RESOLUTION_MS = 10;

/** The limit of open files, from the kernel; undefined when there is none. */
function descriptorLimit(): number | undefined {
  const limit = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
  return limit === undefined ? undefined : Number(limit);
}

/** Those that every Prometheus client has under the same names, and what Node alone has. */
function addProcessMetrics(metrics: Metrics): void {
  const resident = metrics.gauge("weightline_resident_memory_bytes", "Resident memory of this process");
  const cpu = metrics.gauge("weightline_cpu_seconds", "CPU time of this process since its start");
  const started = metrics.gauge("process_start_time_seconds", "Start of this process in Unix seconds");
  const open = metrics.gauge("process_open_fds", "Open file descriptors of this process");
  const limit = metrics.gauge("process_max_fds", "Limit of open file descriptors");
  const delay = metrics.gauge("weightline_event_loop_delay_seconds", "Delay of the event loop since the last scrape", [
    "percentile",
  ]);
  const monitor = monitorEventLoopDelay({ resolution: DELAY_RESOLUTION_MS });
  monitor.enable();
  started.set(performance.timeOrigin / 1000);
  const delayOf = (percentile: number) =>
    Math.max(0, monitor.percentile(percentile) / NANOSECONDS - DELAY_RESOLUTION_MS / 1000);
  metrics.onCollect(() => {
    resident.set(process.memoryUsage.rss());
    const { user, system } = process.cpuUsage();
    cpu.set((user + system) / 1e6);
    delay.set({ percentile: "50" }, delayOf(50));
    delay.set({ percentile: "99" }, delayOf(99));
    monitor.reset();
    // The folder itself is open while it is read.
    open.set(readdirSync("/proc/self/fd").length - 1);
    limit.set(descriptorLimit() ?? Number.POSITIVE_INFINITY);
  });
}

/** Which build of which program a process is; the value is always 1. */
export function addBuildInfo(metrics: Metrics, program: string, version: string): void {
  metrics
    .gauge("weightline_build_info", "Program and version of this process", ["program", "version", "node_version"])
    .set({ program, version, node_version: process.version }, 1);
}

/** Ends when the update does, or its time is over; never rejects. */
async function collect(update: () => void | Promise<void>): Promise<void> {
  const timer = new AbortController();
  const timeout = sleep(COLLECT_TIMEOUT_MS, undefined, { signal: timer.signal }).catch(() => undefined);
  try {
    await Promise.race([update(), timeout]);
  } catch {
    // What it says is told by the part that it belongs to; here it must not take the other metrics with it.
  } finally {
    timer.abort();
  }
}

/** An empty registry with the process's own metrics. */
export function createMetrics(): Metrics {
  const registry = new Registry();
  const updates: Array<() => void | Promise<void>> = [];
  const metrics: Metrics = {
    counter: (name, help, labels = []) => new Counter({ name, help, labelNames: [...labels], registers: [registry] }),
    gauge: (name, help, labels = []) => new Gauge({ name, help, labelNames: [...labels], registers: [registry] }),
    histogram: (name, help, buckets, labels = []) =>
      new Histogram({ name, help, buckets: [...buckets], labelNames: [...labels], registers: [registry] }),
    onCollect: (update) => updates.push(update),
    async render(accept) {
      await Promise.all(updates.map(collect));
      const open = wantsOpenMetrics(accept);
      const text = await registry.metrics();
      const trimmed = text.endsWith("\n") ? text : `${text}\n`;
      return open
        ? { contentType: OPEN_METRICS_TYPE, body: `${toOpenMetrics(trimmed)}# EOF\n` }
        : { contentType: TEXT_TYPE, body: trimmed };
    },
  };
  addProcessMetrics(metrics);
  return metrics;
}

/** How much a scraper wants each kind of body: the highest q of the Accept parts that name it. */
function wantsOpenMetrics(accept: string): boolean {
  let open = 0;
  let text = 0;
  for (const part of accept.toLowerCase().split(",")) {
    const [type, ...parameters] = part.split(";").map((word) => word.trim());
    const parameter = (name: string) => parameters.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1);
    const q = Number(parameter("q") ?? 1);
    if (type === "application/openmetrics-text" && (parameter("version") ?? "1.0.0") === "1.0.0") {
      open = Math.max(open, q);
    } else if (type === "text/plain") {
      text = Math.max(text, q);
    }
  }
  return open > 0 && open >= text;
}

/** OpenMetrics names a counter's family without `_total`, and allows no blank lines. */
function toOpenMetrics(text: string): string {
  return text
    .replace(/^# HELP (\S+)_total /gm, "# HELP $1 ")
    .replace(/^# TYPE (\S+)_total counter$/gm, "# TYPE $1 counter")
    .replace(/\n\n+/g, "\n");
}
