import {
  checkLogFile,
  type Fault,
  LOG_FORMATS,
  LOG_LEVELS,
  type Option,
  type OptionValues,
  option,
  optionTypes,
  SERVER_LIMITS,
  toWeightlineError,
} from "@weightline/runtime";
import { parseRedisUrl, REDIS_URL_FORMS } from "./directory/redis/redis-address.ts";

const { choice, duration, list, port, seconds, text, toggle, integer } = optionTypes;

const BACKENDS = ["memory", "redis", "kubernetes", "k8s", "crd"] as const;
const LATER_MODELS = "models are not downloaded by this version";
const LATER_SECURITY = "security is not checked by this version";

/** What is wrong with REDIS_URL; empty means host and port. */
function redisUrlFault(url: string): Fault | undefined {
  if (url === "") {
    return undefined;
  }
  try {
    parseRedisUrl(url);
    return undefined;
  } catch (error) {
    const { message, wayOut = "" } = toWeightlineError(error);
    return { message: message.replace(/^REDIS_URL: /, ""), wayOut };
  }
}

/** A name that existing users have and that does nothing here: said once, never refused. */
function unused<T>(
  type: Option<T>["type"],
  fallback: T,
  reason: string,
  names: Pick<Option<T>, "yaml" | "flag" | "short" | "env" | "optional" | "secret">,
): Option<T> {
  return option<T>({
    type,
    default: fallback as NoInfer<T>,
    description: "accepted for existing users",
    withoutEffect: reason,
    ...names,
  });
}

/** Every setting of the control plane: the one schema of its flags, variables, YAML, help and sample file. */
export const CONTROL_PLANE_OPTIONS = {
  host: option({
    type: text,
    yaml: "server.host",
    flag: "--host",
    env: ["MODEL_EXPRESS_SERVER_HOST"],
    default: "",
    description: "address to listen on; every address of both families by default, a given 0.0.0.0 is IPv4 alone",
  }),
  port: option({
    type: port,
    yaml: "server.port",
    flag: "--port",
    short: "-p",
    env: ["MODEL_EXPRESS_SERVER_PORT"],
    default: 8001,
    description: "gRPC port (0: any free one)",
  }),
  metricsPort: option({
    type: port,
    yaml: "server.metrics_port",
    flag: "--metrics-port",
    env: ["MODEL_EXPRESS_SERVER_METRICS_PORT"],
    default: 9401,
    description: "HTTP port of /metrics, /healthz, /readyz and the admin API (0: off)",
  }),
  drainTimeoutMs: option({
    type: duration(0, 600_000),
    yaml: "server.drain_timeout",
    flag: "--drain-timeout",
    env: ["MODEL_EXPRESS_DRAIN_TIMEOUT"],
    default: 10_000,
    description: "how long running calls may take to end after SIGTERM; keep it below the pod's grace period",
  }),
  connectionsPerAddress: option({
    type: integer(1, 16_384),
    yaml: "server.max_connections_per_address",
    env: ["MODEL_EXPRESS_SERVER_MAX_CONNECTIONS_PER_ADDRESS"],
    default: SERVER_LIMITS.connectionsPerAddressCount,
    description: "gRPC connections that one address may have; above, its longest idle one ends",
  }),
  metadataBackend: option({
    type: choice(BACKENDS),
    env: ["MX_METADATA_BACKEND"],
    default: "memory",
    description:
      "where nodes and workers are kept: memory (one control plane, for itself) or redis (any number of them)",
    check: (backend) =>
      backend === "memory" || backend === "redis"
        ? undefined
        : `metadata backend ${backend} is not part of this version: it has memory and redis`,
  }),
  announceIntervalMs: option({
    type: duration(100, 600_000),
    yaml: "directory.announce_interval",
    flag: "--announce-interval",
    env: ["MODEL_EXPRESS_ANNOUNCE_INTERVAL"],
    default: 10_000,
    description: "how often agents are asked to announce",
  }),
  heartbeatTimeoutMs: option({
    type: seconds(1, 86_400),
    env: ["MX_HEARTBEAT_TIMEOUT_SECS"],
    default: 90_000,
    description: "silence after which a stock worker is stale",
  }),
  gcTimeoutMs: option({
    type: seconds(1, 604_800),
    env: ["MX_GC_TIMEOUT_SECS"],
    default: 3_600_000,
    description: "silence after which a stock worker is forgotten",
  }),
  logLevel: option({
    type: choice(LOG_LEVELS),
    yaml: "logging.level",
    flag: "--log-level",
    short: "-l",
    env: ["MODEL_EXPRESS_LOG_LEVEL"],
    default: "info",
    description: "least level that is logged",
  }),
  logFormat: option({
    type: choice(LOG_FORMATS),
    yaml: "logging.format",
    flag: "--log-format",
    env: ["MODEL_EXPRESS_LOG_FORMAT"],
    default: "pretty",
    description: "form of the log's lines",
  }),
  logFile: option({
    type: text,
    yaml: "logging.file",
    default: "",
    description: "file to log to; standard error by default",
    check: checkLogFile,
  }),
  logStructured: option({
    type: toggle,
    yaml: "logging.structured",
    default: false,
    description: "log one JSON object a line, whatever logging.format says",
  }),
  databasePath: unused(text, "./models.db", LATER_MODELS, {
    yaml: "database.path",
    flag: "--database-path",
    short: "-d",
    env: ["MODEL_EXPRESS_DATABASE_PATH"],
  }),
  cacheDirectory: unused(text, "./cache", LATER_MODELS, {
    yaml: "cache.directory",
    flag: "--cache-directory",
    env: ["MODEL_EXPRESS_CACHE_DIRECTORY"],
  }),
  cacheMaxSize: unused(optionTypes.byteSize, 0, LATER_MODELS, {
    yaml: "cache.max_size_bytes",
    optional: true,
  }),
  evictionEnabled: unused(toggle, true, LATER_MODELS, {
    yaml: "cache.eviction.enabled",
    flag: "--cache-eviction-enabled",
    env: ["MODEL_EXPRESS_CACHE_EVICTION_ENABLED"],
  }),
  evictionType: unused(text, "lru", LATER_MODELS, { yaml: "cache.eviction.policy.type" }),
  evictionThreshold: unused(duration(0, 365 * 86_400_000), 7 * 86_400_000, LATER_MODELS, {
    yaml: "cache.eviction.policy.unused_threshold",
  }),
  evictionMaxModels: unused(integer(0, 1_000_000), 0, LATER_MODELS, {
    yaml: "cache.eviction.policy.max_models",
    optional: true,
  }),
  evictionMinFree: unused(optionTypes.byteSize, 0, LATER_MODELS, {
    yaml: "cache.eviction.policy.min_free_space_bytes",
    optional: true,
  }),
  evictionInterval: unused(duration(1000, 365 * 86_400_000), 3_600_000, LATER_MODELS, {
    yaml: "cache.eviction.check_interval",
  }),
  securityMode: option({
    type: choice(["off", "enforce"]),
    yaml: "security.mode",
    flag: "--security-mode",
    env: ["MODEL_EXPRESS_SECURITY_MODE"],
    default: "off",
    description: "off: whoever reaches the port may do everything",
    check: (mode) =>
      mode === "off" ? undefined : "security mode enforce is not part of this version: it would protect nothing",
  }),
  tokenAudiences: unused(list, [], LATER_SECURITY, {
    yaml: "security.token_audiences",
    flag: "--security-token-audiences",
    env: ["MODEL_EXPRESS_SECURITY_TOKEN_AUDIENCES"],
  }),
  allowedAccounts: unused(list, [], LATER_SECURITY, {
    yaml: "security.allowed_service_accounts",
    flag: "--security-allowed-service-accounts",
    env: ["MODEL_EXPRESS_SECURITY_ALLOWED_SERVICE_ACCOUNTS"],
  }),
  securityCacheTtl: unused(integer(0, 86_400), 60, LATER_SECURITY, {
    yaml: "security.cache_ttl_secs",
    flag: "--security-cache-ttl-secs",
    env: ["MODEL_EXPRESS_SECURITY_CACHE_TTL_SECS"],
  }),
  redisUrl: option({
    type: text,
    env: ["REDIS_URL"],
    default: "",
    secret: true,
    description: `address of Redis with backend redis, built from host and port where it is not given: ${REDIS_URL_FORMS}`,
    check: redisUrlFault,
  }),
  redisHost: option({
    type: text,
    env: ["MX_REDIS_HOST", "REDIS_HOST"],
    default: "localhost",
    description: "host of Redis, where REDIS_URL is not given",
  }),
  redisPort: option({
    type: port,
    env: ["MX_REDIS_PORT", "REDIS_PORT"],
    default: 6379,
    description: "port of Redis, where REDIS_URL is not given",
  }),
  redisTimeoutMs: option({
    type: duration(50, 60_000),
    yaml: "directory.redis_timeout",
    flag: "--redis-timeout",
    env: ["MODEL_EXPRESS_REDIS_TIMEOUT"],
    default: 1000,
    description: "how long one command to Redis may take",
  }),
  redisCaFile: option({
    type: text,
    yaml: "directory.redis_ca_file",
    flag: "--redis-ca-file",
    env: ["MODEL_EXPRESS_REDIS_CA_FILE"],
    default: "",
    description: "PEM file of the authority of Redis's certificate (rediss://); the system's by default",
  }),
  reaperIntervalMs: option({
    type: seconds(1, 86_400),
    env: ["MX_REAPER_SCAN_INTERVAL_SECS"],
    default: 30_000,
    description: "how often workers that are over are looked for and removed",
  }),
  statusTtlMs: option({
    type: seconds(1, 604_800),
    env: ["MX_STATUS_TTL_SECS"],
    default: 3_600_000,
    description: "least lifetime of a key in Redis that nothing renews",
  }),
  huggingFace: unused(text, "", LATER_MODELS, {
    env: ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"],
    secret: true,
  }),
  ngc: unused(text, "", LATER_MODELS, {
    env: ["NGC_API_KEY", "NGC_CLI_API_KEY", "NGC_CLI_HOME", "NGC_API_ENDPOINT", "NGC_AUTH_ENDPOINT"],
    secret: true,
  }),
  googleCredentials: unused(text, "", LATER_MODELS, { env: ["GOOGLE_APPLICATION_CREDENTIALS"], secret: true }),
  aws: unused(text, "", LATER_MODELS, {
    env: [
      "AWS_ACCESS_KEY_ID",
      "AWS_SECRET_ACCESS_KEY",
      "AWS_SESSION_TOKEN",
      "AWS_DEFAULT_REGION",
      "AWS_REGION",
      "AWS_ENDPOINT_URL",
    ],
    secret: true,
  }),
};

/** The control plane's complete, validated settings. */
export type ControlPlaneConfiguration = OptionValues<typeof CONTROL_PLANE_OPTIONS>;
