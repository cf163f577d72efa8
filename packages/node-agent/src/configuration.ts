import { hostname } from "node:os";
import {
  checkAddresses,
  checkLogFile,
  LOG_FORMATS,
  LOG_LEVELS,
  type OptionValues,
  option,
  optionTypes,
  SECURITY_OPTIONS,
} from "@weightline/runtime";
import { linkRate } from "./transfers/link-rate.ts";

const { byteSize, choice, duration, integer, port, text } = optionTypes;

/** sun_path has 108 bytes, the last of which ends the text. */
const SOCKET_PATH_MAX_BYTES = 107;
/** The descriptor socket is the local socket's path with this behind it. */
export const DESCRIPTOR_SOCKET_SUFFIX = ".fd";
const NAME_MAX_BYTES = 253;

function checkSocket(path: string): string | undefined {
  const longer = path + DESCRIPTOR_SOCKET_SUFFIX;
  const bytes = Buffer.byteLength(longer);
  if (!path.startsWith("/")) {
    return `the socket path ${path} is not absolute`;
  }
  return bytes > SOCKET_PATH_MAX_BYTES
    ? `the socket path ${longer} has ${bytes} bytes; at most ${SOCKET_PATH_MAX_BYTES} fit, the ${DESCRIPTOR_SOCKET_SUFFIX} of the descriptor socket included`
    : undefined;
}

function checkAbsolute(path: string): string | undefined {
  return path === "" || path.startsWith("/") ? undefined : `the path ${path} is not absolute`;
}

function checkName(name: string): string | undefined {
  return name === "" || Buffer.byteLength(name) > NAME_MAX_BYTES
    ? `the node name "${name}" must have 1 to ${NAME_MAX_BYTES} bytes`
    : undefined;
}

/** Every setting of the node agent: the one schema of its flags, variables, YAML, help and sample file. */
export const AGENT_OPTIONS = {
  nodeName: option({
    type: text,
    yaml: "node.name",
    flag: "--node-name",
    env: ["MX_NODE_NAME", "NODE_NAME"],
    default: hostname(),
    defaultText: "host name",
    optional: true,
    description: "name of this node, unique in the cluster; the host's name by default",
    check: checkName,
  }),
  controlPlane: option({
    type: text,
    yaml: "control_plane",
    flag: "--control-plane",
    env: ["MODEL_EXPRESS_URL", "MX_SERVER_ADDRESS"],
    default: "localhost:8001",
    description: "the control plane's gRPC address; several with commas between them",
    check: checkAddresses,
  }),
  socket: option({
    type: text,
    yaml: "socket",
    flag: "--socket",
    env: ["MX_AGENT_SOCKET"],
    default: "/run/weightline/agent.sock",
    description: "Unix socket of the local API; the descriptor socket is this path with .fd behind it",
    check: checkSocket,
  }),
  store: option({
    type: text,
    yaml: "store.path",
    flag: "--store",
    env: ["MX_AGENT_STORE"],
    default: "/dev/shm/weightline",
    description: "folder on tmpfs for the holdings' files; all durable state lies in it",
    check: checkAbsolute,
  }),
  storeReadOnly: option({
    type: text,
    yaml: "store.read_only_mount",
    flag: "--store-ro",
    env: ["MX_AGENT_STORE_RO"],
    default: "",
    description:
      "the same folder through a read-only mount, for descriptors given to pods; made by the agent where it may",
    check: checkAbsolute,
  }),
  loadRoot: option({
    type: text,
    yaml: "load_root",
    flag: "--load-root",
    env: ["MX_AGENT_LOAD_ROOT"],
    default: "",
    description: "folder below which load may read; / outside a container, nothing inside one by default",
    check: checkAbsolute,
  }),
  bind: option({
    type: text,
    yaml: "network.bind",
    flag: "--bind",
    env: ["MX_AGENT_BIND"],
    default: "",
    description: "address to listen on; every address of both families by default",
  }),
  linkRate: option({
    type: linkRate,
    yaml: "network.link_rate",
    flag: "--link-rate",
    env: ["MX_AGENT_LINK_RATE"],
    default: 0,
    optional: true,
    description:
      "rate of the network link, like 100Gbit, for percent-of-bound; the fastest interface's speed by default, else the best rate seen",
  }),
  host: option({
    type: text,
    yaml: "network.host",
    flag: "--host",
    env: ["MX_WORKER_HOST"],
    default: "",
    description: "address that peers dial; that of the route to the control plane by default",
  }),
  port: option({
    type: port,
    yaml: "network.port",
    flag: "--port",
    env: ["MX_WORKER_GRPC_PORT"],
    default: 6555,
    description: "port of WorkerService and PeerService (0: any free one)",
  }),
  dataPort: option({
    type: port,
    yaml: "network.data_port",
    flag: "--data-port",
    env: ["MX_AGENT_DATA_PORT"],
    default: 6755,
    description: "port of the stream transport (0: any free one)",
  }),
  metricsPort: option({
    type: port,
    yaml: "network.metrics_port",
    flag: "--metrics-port",
    env: ["MX_AGENT_METRICS_PORT"],
    default: 9402,
    description: "port of /metrics, /healthz and /readyz (0: any free one)",
  }),
  memoryLimit: option({
    type: byteSize,
    yaml: "store.memory_limit",
    flag: "--memory-limit",
    env: ["MX_AGENT_MEMORY_LIMIT"],
    default: 0,
    optional: true,
    description:
      "bytes for all holdings, like 64Gi; by default the smallest of 80 % of the tmpfs, 50 % of RAM and 90 % of the cgroup's limit",
  }),
  digest: option({
    type: choice(["xxh3-128", "sha-256"]),
    yaml: "digest",
    flag: "--digest",
    env: ["MX_AGENT_DIGEST"],
    default: "xxh3-128",
    description: "digest of chunks; sha-256 is for peers that are not trusted, and refuses objects with less",
  }),
  loadThreads: option({
    type: integer(1, 16),
    yaml: "transfer.load_threads",
    flag: "--load-threads",
    env: ["MX_AGENT_LOAD_THREADS"],
    default: 2,
    description: "threads that read a model from disk",
  }),
  streams: option({
    type: integer(1, 4),
    yaml: "transfer.streams",
    flag: "--transfer-streams",
    env: ["MX_AGENT_TRANSFER_STREAMS"],
    default: 2,
    description: "TCP streams per transfer",
  }),
  stallTimeoutMs: option({
    type: duration(1000, 3_600_000),
    yaml: "transfer.stall_timeout",
    flag: "--stall-timeout",
    env: ["MX_AGENT_STALL_TIMEOUT"],
    default: 5000,
    description: "silence after which a peer counts as dead",
  }),
  announceIntervalMs: option({
    type: duration(100, 600_000),
    yaml: "announce_interval",
    flag: "--announce-interval",
    env: ["MX_AGENT_ANNOUNCE_INTERVAL"],
    default: 10_000,
    description: "time between announces; a node is lost after three of them",
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
  ...SECURITY_OPTIONS,
};

/** The agent's complete, validated settings. */
export type AgentConfiguration = OptionValues<typeof AGENT_OPTIONS>;
