import { Code, ConnectError } from "@connectrpc/connect";
import { ApiService } from "@weightline/proto/api";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { route, type ServiceRoute } from "@weightline/runtime";

/** model_express.health.HealthService. */
export function createStockHealthService(version: string, status: () => string): ServiceRoute {
  const startedAt = performance.now();
  return route(HealthService, {
    getHealth: () => ({
      version,
      status: status(),
      uptime: BigInt(Math.floor((performance.now() - startedAt) / 1000)),
    }),
  });
}

/** model_express.api.ApiService: `ping` alone. */
export function createApiService(): ServiceRoute {
  return route(ApiService, {
    sendRequest: ({ action }) =>
      action === "ping"
        ? { success: true, data: Buffer.from('{"message":"pong"}') }
        : { success: false, error: `Unknown action: ${action}` },
  });
}

/** model_express.model.ModelService: its messages are known, the downloads are not this program's work yet. */
export function createModelService(): ServiceRoute {
  const refuse = () => {
    throw new ConnectError(
      "this control plane downloads no models: load them on a node with mxctl load",
      Code.Unavailable,
    );
  };
  return route(ModelService, {
    // biome-ignore lint/correctness/useYield: it ends before its first item
    async *ensureModelDownloaded() {
      refuse();
    },
    // biome-ignore lint/correctness/useYield: it ends before its first item
    async *streamModelFiles() {
      refuse();
    },
    listModelFiles: refuse,
    deleteModel: refuse,
  });
}
