import { monitorEventLoopDelay } from "node:perf_hooks";
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
  /** Runs before each scrape, to set gauges from the program's state. */
  onCollect(update: () => void | Promise<void>): void;
  /** The exposition body and its type, for what a scraper's Accept header asks for. */
  render(accept: string): Promise<{ contentType: string; body: string }>;
}

const TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const NANOSECONDS = 1e9;

function addProcessMetrics(metrics: Metrics): void {
  const resident = metrics.gauge("weightline_resident_memory_bytes", "Resident memory of this process");
  const cpu = metrics.gauge("weightline_cpu_seconds", "CPU time of this process since its start");
  const delay = metrics.gauge("weightline_event_loop_delay_seconds", "Delay of the event loop since the last scrape", [
    "percentile",
  ]);
  const monitor = monitorEventLoopDelay({ resolution: 20 });
  monitor.enable();
  metrics.onCollect(() => {
    resident.set(process.memoryUsage.rss());
    const { user, system } = process.cpuUsage();
    cpu.set((user + system) / 1e6);
    delay.set({ percentile: "50" }, monitor.percentile(50) / NANOSECONDS);
    delay.set({ percentile: "99" }, monitor.percentile(99) / NANOSECONDS);
    monitor.reset();
  });
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
      for (const update of updates) {
        await update();
      }
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
