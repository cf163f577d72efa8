import type { Logger } from "@weightline/runtime";
import type { ControlPlaneConfiguration } from "../configuration.ts";
import type { Directory } from "./directory.ts";
import type { DirectoryObserver } from "./directory-observer.ts";
import { createMemoryDirectory } from "./memory-directory.ts";
import { parseRedisUrl, type RedisAddress, readCa } from "./redis/redis-address.ts";
import { createRedisDirectory } from "./redis/redis-directory.ts";

function redisAddress({ redisUrl, redisHost, redisPort }: ControlPlaneConfiguration): RedisAddress {
  if (redisUrl !== "") {
    return parseRedisUrl(redisUrl);
  }
  return {
    kind: "single",
    hosts: [{ host: redisHost, port: redisPort }],
    path: undefined,
    primary: undefined,
    username: undefined,
    password: undefined,
    database: 0,
    tls: false,
  };
}

/** The directory of the configured backend. */
export function createDirectory(
  configuration: ControlPlaneConfiguration,
  log: Logger,
  observerOf: (backend: string) => DirectoryObserver,
): Directory {
  const { heartbeatTimeoutMs, gcTimeoutMs, announceIntervalMs, reaperIntervalMs } = configuration;
  const lifetimes = { heartbeatTimeoutMs, gcTimeoutMs, announceIntervalMs, reaperIntervalMs };
  if (configuration.metadataBackend !== "redis") {
    // It has no backend that could fail: its counters stay at zero.
    observerOf("memory");
    return createMemoryDirectory(lifetimes);
  }
  return createRedisDirectory({
    ...lifetimes,
    address: redisAddress(configuration),
    ca: readCa(configuration.redisCaFile),
    timeoutMs: configuration.redisTimeoutMs,
    statusTtlMs: configuration.statusTtlMs,
    observer: observerOf("redis"),
    log,
  });
}
