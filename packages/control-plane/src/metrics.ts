import { enumName } from "@weightline/proto";
import { type AnnounceVerdict, AnnounceVerdictSchema } from "@weightline/proto/node";
import { addBuildInfo, createMetrics, type Metrics } from "@weightline/runtime";
import type { DirectorySize } from "./directory/directory.ts";
import { BACKEND_ERROR_KINDS, type DirectoryObserver } from "./directory/directory-observer.ts";

/** How an announce ended: the directory's verdict, `invalid` for one that it never saw, `failed` where it could not answer. */
export type AnnounceOutcome = AnnounceVerdict | "invalid" | "failed";

/** The control plane's metrics: all of them are here (docs/metrics.md lists them). */
export interface ControlPlaneMetrics {
  readonly metrics: Metrics;
  /** A served call is over; `code` as gRPC names it, in lower case. */
  called(service: string, method: string, code: string, seconds: number): void;
  /** A directory call is over. */
  asked(backend: string, operation: string, seconds: number): void;
  announced(outcome: AnnounceOutcome): void;
  /** The backend answers or it does not. */
  backendUp(backend: string, up: boolean): void;
  /** What the directory of that backend tells of it. */
  observer(backend: string): DirectoryObserver;
  /** Sets the directory's size at each scrape. */
  countSize(size: () => Promise<DirectorySize | undefined>): void;
}

const SECONDS = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5];
const OUTCOMES = ["accepted", "stale", "name_taken", "resend", "invalid", "failed"] as const;

function outcomeName(outcome: AnnounceOutcome): string {
  return typeof outcome === "string" ? outcome : enumName(AnnounceVerdictSchema, outcome);
}

export function createControlPlaneMetrics(version: string): ControlPlaneMetrics {
  const metrics = createMetrics();
  addBuildInfo(metrics, "control-plane", version);
  const rpc = metrics.histogram("weightline_rpc_seconds", "Time of served calls", SECONDS, [
    "service",
    "method",
    "code",
  ]);
  const directory = metrics.histogram("weightline_directory_seconds", "Time of directory calls", SECONDS, [
    "backend",
    "operation",
  ]);
  const nodes = metrics.gauge("weightline_nodes", "Known nodes", ["state"]);
  const sources = metrics.gauge("weightline_sources", "Source ids that have a worker");
  const workers = metrics.gauge("weightline_workers", "Workers of all sources");
  const announces = metrics.counter("weightline_announces_total", "Announces of agents, by how they ended", [
    "verdict",
  ]);
  const up = metrics.gauge("weightline_backend_up", "1 when the directory's backend answers", ["backend"]);
  const errors = metrics.counter("weightline_backend_errors_total", "Requests to the backend that failed", [
    "backend",
    "kind",
  ]);
  const reconnects = metrics.counter(
    "weightline_backend_reconnects_total",
    "Connections to the backend that were lost and are back",
    ["backend"],
  );
  for (const verdict of OUTCOMES) {
    announces.inc({ verdict }, 0);
  }
  return {
    metrics,
    called: (service, method, code, seconds) => rpc.observe({ service, method, code }, seconds),
    asked: (backend, operation, seconds) => directory.observe({ backend, operation }, seconds),
    announced: (outcome) => announces.inc({ verdict: outcomeName(outcome) }),
    backendUp: (backend, answers) => up.set({ backend }, answers ? 1 : 0),
    observer(backend) {
      for (const kind of BACKEND_ERROR_KINDS) {
        errors.inc({ backend, kind }, 0);
      }
      reconnects.inc({ backend }, 0);
      return {
        failed: (kind) => errors.inc({ backend, kind }),
        reconnected: () => reconnects.inc({ backend }),
      };
    },
    countSize(size) {
      metrics.onCollect(async () => {
        const counted = await size();
        if (counted === undefined) {
          // What is not known is not there: an old number would look like a healthy directory.
          nodes.reset();
          sources.remove();
          workers.remove();
          return;
        }
        for (const [state, number] of Object.entries(counted.nodes)) {
          nodes.set({ state }, number);
        }
        sources.set(counted.sources);
        workers.set(counted.workers);
      });
    },
  };
}
