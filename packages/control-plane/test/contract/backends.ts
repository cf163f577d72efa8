import { createRedisServer } from "../../../../test/support/redis-server.ts";

/** Where a control plane under test keeps its records. */
export interface OpenBackend {
  /** Variables of the control plane that make it use this backend. */
  readonly env: Readonly<Record<string, string>>;
  close(): Promise<void>;
}

/** A kind of backend: the contract is the same over each. */
export interface Backend {
  readonly name: string;
  /** True: control planes on the same one share its records. */
  readonly shared: boolean;
  /** A fresh and empty one of this run's own. */
  open(): Promise<OpenBackend>;
}

/** Every backend that the contract is proved on. */
export const BACKENDS: readonly Backend[] = [
  {
    name: "memory",
    shared: false,
    open: async () => ({ env: { MX_METADATA_BACKEND: "memory" }, close: async () => undefined }),
  },
  {
    name: "redis",
    shared: true,
    async open() {
      const server = await createRedisServer();
      return { env: { MX_METADATA_BACKEND: "redis", REDIS_URL: server.url }, close: () => server.remove() };
    },
  },
];
