import { createBoundedLog } from "../bounded-log.ts";
import type { Logger } from "../logging.ts";
import type { Metrics } from "../metrics.ts";
import type { OnLimit } from "./server-limits.ts";

/** What a server's limits end, as a counter and in the log; and how many connections it has. */
export interface LimitRecord {
  readonly onLimit: OnLimit;
  /** Tells of the server's connections from then on. */
  follow(connections: () => number): void;
}

export function createLimitRecord(metrics: Metrics, log: Logger): LimitRecord {
  const bounded = createBoundedLog(log);
  const ended = metrics.counter("weightline_rpc_limited_total", "Connections and calls that a limit ended", ["limit"]);
  const open = metrics.gauge("weightline_rpc_connections", "Open gRPC connections");
  return {
    onLimit(limit, peer) {
      ended.inc({ limit });
      bounded("info", { event: "peer-limited", limit, peer }, "a limit ended a peer's connection or call");
    },
    follow(connections) {
      metrics.onCollect(() => open.set(connections()));
    },
  };
}
