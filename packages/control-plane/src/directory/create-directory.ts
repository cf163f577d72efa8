import type { Logger } from "@weightline/runtime";
import type { ControlPlaneConfiguration } from "../configuration.ts";
import type { Directory } from "./directory.ts";
import { createMemoryDirectory } from "./memory-directory.ts";
import { parseRedisUrl, type RedisAddress, readCa } from "./redis/redis-address.ts";
import type { RedisObserver } from "./redis/redis-connection.ts";
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
  observer: RedisObserver,
): Directory {
  const { heartbeatTimeoutMs, gcTimeoutMs, announceIntervalMs, reaperIntervalMs } = configuration;
  const lifetimes = { heartbeatTimeoutMs, gcTimeoutMs, announceIntervalMs, reaperIntervalMs };
  if (configuration.metadataBackend !== "redis") {
    return createMemoryDirectory(lifetimes);
  }
  return createRedisDirectory({
    ...lifetimes,
    address: redisAddress(configuration),
    ca: readCa(configuration.redisCaFile),
    timeoutMs: configuration.redisTimeoutMs,
    statusTtlMs: configuration.statusTtlMs,
    observer,
    log,
  });
}
