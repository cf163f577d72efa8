import {
  checkLogFile,
  LOG_FORMATS,
  LOG_LEVELS,
  type Option,
  type OptionValues,
  option,
  optionTypes,
} from "@weightline/runtime";
import { CONTROL_PLANE_SECURITY_OPTIONS } from "./security/security-options.ts";

const { choice, duration, port, seconds, text, toggle, integer } = optionTypes;

const BACKENDS = ["memory", "redis", "kubernetes", "k8s", "crd"] as const;
const LATER_MODELS = "models are not downloaded by this version";
const LATER_REDIS = "this version keeps nodes and workers in its memory";

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
  metadataBackend: option({
    type: choice(BACKENDS),
    env: ["MX_METADATA_BACKEND"],
    default: "memory",
    description: "where nodes and workers are kept; this version has memory alone",
    check: (backend) =>
      backend === "memory"
        ? undefined
        : `metadata backend ${backend} is not part of this version: it has memory, which one control plane keeps for itself`,
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
  logStructured: unused(toggle, false, "use logging.format json", { yaml: "logging.structured" }),
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
  ...CONTROL_PLANE_SECURITY_OPTIONS,
  redisUrl: unused(text, "", LATER_REDIS, { env: ["REDIS_URL"], secret: true }),
  redisHost: unused(text, "", LATER_REDIS, { env: ["MX_REDIS_HOST", "REDIS_HOST"] }),
  redisPort: unused(port, 6379, LATER_REDIS, { env: ["MX_REDIS_PORT", "REDIS_PORT"] }),
  reaperInterval: unused(integer(1, 86_400), 30, "nothing is scanned periodically", {
    env: ["MX_REAPER_SCAN_INTERVAL_SECS"],
  }),
  statusTtl: unused(integer(1, 604_800), 3600, "records live as long as their heartbeats", {
    env: ["MX_STATUS_TTL_SECS"],
  }),
};

/** The control plane's complete, validated settings. */
export type ControlPlaneConfiguration = OptionValues<typeof CONTROL_PLANE_OPTIONS>;
