import { createHealthStatus, type ServiceRoute } from "@weightline/runtime";
import type { BackendState } from "./backend-watch.ts";

/** Whether the program can do its work, told alike by grpc.health.v1, HealthService, /readyz and the metric. */
export interface ServingState {
  /** grpc.health.v1. */
  readonly route: ServiceRoute;
  /** What the backend watch found. */
  backend(state: BackendState): void;
  /** All that serves has started. */
  started(): void;
  /** It stops: nothing serves from now on, whatever the backend does. */
  drain(): void;
  /** Why it cannot do its work; empty when it can. */
  reasons(): readonly string[];
  /** One line for HealthService: "ok", "draining", or "degraded: ..." without what only operators should read. */
  status(): string;
}

/**
 * `services` are all names; those of `needBackend`, and the empty one, do not serve while the directory's backend is lost.
 */
export function createServingState(
  backend: string,
  services: readonly string[],
  needBackend: readonly string[],
): ServingState {
  const health = createHealthStatus(services);
  const dependent = new Set(["", ...needBackend]);
  let hasStarted = false;
  let draining = false;
  let lost = "";
  const tell = () => {
    for (const name of ["", ...services]) {
      health.set(hasStarted && !draining && (lost === "" || !dependent.has(name)), name);
    }
  };
  return {
    route: health.route,
    backend({ ok, reason }) {
      lost = ok ? "" : reason;
      tell();
    },
    started() {
      hasStarted = true;
      tell();
    },
    drain() {
      draining = true;
      tell();
    },
    reasons: () => [
      ...(hasStarted ? [] : ["starting"]),
      ...(draining ? ["draining"] : []),
      ...(lost === "" ? [] : [`the directory's backend (${backend}) does not answer: ${lost}`]),
    ],
    status: () => (draining ? "draining" : lost === "" ? "ok" : `degraded: the backend ${backend} does not answer`),
  };
}
