import { Code, ConnectError } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@weightline/proto/grpc-health";
import { route, type ServiceRoute } from "./service-route.ts";

/** What grpc.health.v1 tells. */
export interface HealthStatus {
  /** Sets one name, or every name at once: the program serves or it does not. */
  set(serving: boolean, service?: string): void;
  readonly route: ServiceRoute;
}

/** grpc.health.v1 for the given service names and the empty one. Not serving until told otherwise. */
export function createHealthStatus(names: readonly string[]): HealthStatus {
  const known = new Map<string, Status>(["", ...names].map((name) => [name, Status.NOT_SERVING]));
  let changed = Promise.withResolvers<void>();
  return {
    set(serving, service) {
      for (const name of service === undefined ? known.keys() : [service]) {
        known.set(name, serving ? Status.SERVING : Status.NOT_SERVING);
      }
      changed.resolve();
      changed = Promise.withResolvers();
    },
    route: route(Health, {
      check({ service }) {
        const status = known.get(service);
        if (status === undefined) {
          throw new ConnectError(`service ${service} is not known here`, Code.NotFound);
        }
        return { status };
      },
      async *watch({ service }, { signal }) {
        const ended = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
        let told: Status | undefined;
        while (!signal.aborted) {
          const next = changed.promise;
          const status = known.get(service) ?? Status.SERVICE_UNKNOWN;
          if (status !== told) {
            told = status;
            yield { status };
          }
          await Promise.race([next, ended]);
        }
        throw signal.reason;
      },
    }),
  };
}
