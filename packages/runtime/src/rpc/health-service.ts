import { Code, ConnectError } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@weightline/proto/grpc-health";
import { route, type ServiceRoute } from "./grpc-server.ts";

/** What grpc.health.v1 tells. */
export interface HealthStatus {
  /** Sets every name at once: the program serves or it does not. */
  set(serving: boolean): void;
  readonly route: ServiceRoute;
}

/** grpc.health.v1 for the given service names and the empty one. Not serving until told otherwise. */
export function createHealthStatus(names: readonly string[]): HealthStatus {
  const known = new Set(["", ...names]);
  let status: Status = Status.NOT_SERVING;
  let changed = Promise.withResolvers<void>();
  return {
    set(serving) {
      status = serving ? Status.SERVING : Status.NOT_SERVING;
      changed.resolve();
      changed = Promise.withResolvers();
    },
    route: route(Health, {
      check({ service }) {
        if (!known.has(service)) {
          throw new ConnectError(`service ${service} is not known here`, Code.NotFound);
        }
        return { status };
      },
      async *watch({ service }, { signal }) {
        const ended = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
        while (!signal.aborted) {
          const next = changed.promise;
          yield { status: known.has(service) ? status : Status.SERVICE_UNKNOWN };
          await Promise.race([next, ended]);
        }
      },
    }),
  };
}
