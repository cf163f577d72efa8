import type { MoverReport } from "@weightline/rdma-native";
import { addBuildInfo, createMetrics, type Metrics } from "@weightline/runtime";
import type { HoldingRegistry } from "./holdings/holding-registry.ts";
import { HOLDING_STATES } from "./holdings/holding-state.ts";
import type { MemoryAccount } from "./holdings/memory-account.ts";
import type { LeaseTable } from "./leases/lease-table.ts";
import type { OfferTable } from "./offers/offer-table.ts";
import type { TransferLog } from "./transfers/transfer-log.ts";

/** The agent's metrics: all of them are here (docs/metrics.md lists them). */
export interface AgentMetrics {
  readonly metrics: Metrics;
  acquired(outcome: string, seconds: number): void;
  attached(seconds: number): void;
  received(report: MoverReport): void;
  sent(report: MoverReport): void;
  fallback(reason: string): void;
  moverRestarted(): void;
  /** An offer is over: "sealed", or the code of the error that ended it. */
  offerEnded(outcome: string): void;
  refusedLocally(limit: string): void;
  /** Sets gauges from these at each scrape. */
  observe(sources: {
    registry: HoldingRegistry;
    account: MemoryAccount;
    leases: LeaseTable;
    transfers: TransferLog;
    offers: OfferTable;
  }): void;
}

const ATTACH_BUCKETS_S = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1];
const ACQUIRE_BUCKETS_S = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300];

export function createAgentMetrics(version: string): AgentMetrics {
  const metrics = createMetrics();
  addBuildInfo(metrics, "node-agent", version);
  const transferBytes = metrics.counter("weightline_transfer_bytes_total", "Payload bytes moved between nodes", [
    "direction",
    "transport",
  ]);
  const chunks = metrics.counter("weightline_chunks_total", "Chunks received, by what their digest said", ["result"]);
  const holdings = metrics.gauge("weightline_holdings", "Holdings on this node", ["state"]);
  const holdingBytes = metrics.gauge("weightline_holding_bytes", "Bytes that holdings take", ["state", "tier"]);
  const limit = metrics.gauge("weightline_store_limit_bytes", "Limit of all holdings' bytes");
  const leases = metrics.gauge("weightline_leases", "Leases on holdings");
  const attach = metrics.histogram(
    "weightline_attach_seconds",
    "Time to give an attached process its ticket",
    ATTACH_BUCKETS_S,
  );
  const acquire = metrics.histogram(
    "weightline_acquire_seconds",
    "Time from an acquire to its lease or error",
    ACQUIRE_BUCKETS_S,
    ["outcome"],
  );
  const restarts = metrics.counter("weightline_mover_restarts_total", "Movers started after one died");
  const fallbacks = metrics.counter("weightline_fallbacks_total", "Times that a slower or other way was taken", [
    "from",
    "to",
    "reason",
  ]);
  const refusals = metrics.counter(
    "weightline_local_refusals_total",
    "Connections and calls of local callers that a limit ended",
    ["limit"],
  );
  const bound = metrics.gauge(
    "weightline_transfer_bound_ratio",
    "Rate of the last finished transfer over the link's rate",
  );
  const offers = metrics.gauge("weightline_offers", "Offers that pods are filling");
  const offersEnded = metrics.counter("weightline_offers_total", "Offers that are over, by how they ended", [
    "outcome",
  ]);
  offersEnded.inc({ outcome: "sealed" }, 0);
  for (const result of ["verified", "refused"]) {
    chunks.inc({ result }, 0);
  }
  for (const direction of ["in", "out"]) {
    transferBytes.inc({ direction, transport: "stream" }, 0);
  }
  restarts.inc(0);
  for (const limit of ["connections", "calls", "unread"]) {
    refusals.inc({ limit }, 0);
  }

  return {
    metrics,
    acquired: (outcome, seconds) => acquire.observe({ outcome }, seconds),
    attached: (seconds) => attach.observe(seconds),
    received(report) {
      transferBytes.inc({ direction: "in", transport: "stream" }, Number(report.networkBytes));
      chunks.inc({ result: "verified" }, Number(report.verifiedChunks));
      chunks.inc({ result: "refused" }, Number(report.refusedChunks));
    },
    sent: (report) => transferBytes.inc({ direction: "out", transport: "stream" }, Number(report.sentBytes ?? 0n)),
    fallback: (reason) => fallbacks.inc({ from: "peer", to: "peer", reason }),
    moverRestarted: () => restarts.inc(),
    offerEnded: (outcome) => offersEnded.inc({ outcome }),
    refusedLocally: (limit) => refusals.inc({ limit }),
    observe(sources) {
      metrics.onCollect(() => {
        const all = sources.registry.all();
        for (const state of HOLDING_STATES) {
          const some = all.filter(({ record }) => record.state === state);
          holdings.set({ state }, some.length);
          holdingBytes.set(
            { state, tier: "dram" },
            some.reduce((sum, { charge }) => sum + charge, 0),
          );
        }
        limit.set(sources.account.limitBytes);
        leases.set(sources.leases.count());
        offers.set(sources.offers.count());
        bound.set(sources.transfers.lastBoundRatio());
      });
    },
  };
}
