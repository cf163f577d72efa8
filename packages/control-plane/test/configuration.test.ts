import { CONTROL_PLANE_OPTIONS } from "@weightline/control-plane";
import { readConfiguration } from "@weightline/runtime";
import t from "tap";

const read = (argv: string[], env: Record<string, string> = {}) =>
  readConfiguration({ table: CONTROL_PLANE_OPTIONS, argv, env });

t.test("names and defaults that existing users have", async (t) => {
  t.match(read([]).values, {
    port: 8001,
    metricsPort: 9401,
    metadataBackend: "memory",
    heartbeatTimeoutMs: 90_000,
    gcTimeoutMs: 3_600_000,
    logLevel: "info",
    logFormat: "pretty",
    securityMode: "off",
  });
  t.match(
    read([], { MODEL_EXPRESS_SERVER_PORT: "9", MX_HEARTBEAT_TIMEOUT_SECS: "30", MODEL_EXPRESS_LOG_LEVEL: "DEBUG" })
      .values,
    { port: 9, heartbeatTimeoutMs: 30_000, logLevel: "debug" },
  );
  for (const [flag, value] of [
    ["-p", "1"],
    ["-d", "x"],
    ["-l", "warn"],
    ["--cache-directory", "x"],
    ["--security-token-audiences", "a,b"],
    ["--cache-eviction-enabled", "false"],
  ]) {
    t.ok(read([String(flag), String(value)]), String(flag));
  }
});

t.test("service links, names without effect, backends that are not there", async (t) => {
  const linked = read([], { MODEL_EXPRESS_SERVER_PORT: "tcp://10.0.0.5:8001" });
  t.equal(linked.values.port, 8001);
  t.match(linked.notices, [/service link/]);
  t.match(read([], { MODEL_EXPRESS_CACHE_DIRECTORY: "/x" }).notices, [/MODEL_EXPRESS_CACHE_DIRECTORY has no effect/]);
  t.throws(() => read([], { MX_METADATA_BACKEND: "redis" }), {
    code: "InvalidArgument",
    message: /backend redis is not part of this version/,
  });
  t.throws(() => read([], { MX_METADATA_BACKEND: "etcd" }), { code: "InvalidArgument" });
  t.throws(() => read(["--security-mode", "enforce"]), { code: "InvalidArgument", message: /would protect nothing/ });
});
