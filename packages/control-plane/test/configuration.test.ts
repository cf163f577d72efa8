import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { CONTROL_PLANE_OPTIONS, checkSecurity } from "@weightline/control-plane";
import { effectiveText, readConfiguration } from "@weightline/runtime";
import t from "tap";

const read = (argv: string[], env: Record<string, string> = {}) =>
  readConfiguration({ table: CONTROL_PLANE_OPTIONS, argv, env, check: checkSecurity });

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
  t.equal(read([], { MX_METADATA_BACKEND: "redis" }).values.metadataBackend, "redis");
  t.throws(() => read([], { MX_METADATA_BACKEND: "kubernetes" }), {
    code: "InvalidArgument",
    message: /backend kubernetes is not part of this version/,
  });
  t.throws(() => read([], { MX_METADATA_BACKEND: "etcd" }), { code: "InvalidArgument" });
});

t.test("security: what enforce needs, by flag, variable and file", async (t) => {
  const audiences = { MODEL_EXPRESS_SECURITY_TOKEN_AUDIENCES: "a, b" };
  const accounts = { MODEL_EXPRESS_SECURITY_ALLOWED_SERVICE_ACCOUNTS: "ns:one,ns:two" };
  const enforce = { MODEL_EXPRESS_SECURITY_MODE: "enforce" };
  t.match(read([], { ...enforce, ...audiences, ...accounts }).values, {
    securityMode: "enforce",
    tokenAudiences: ["a", "b"],
    allowedAccounts: ["ns:one", "ns:two"],
    securityCacheTtl: 60,
    plaintextTokens: false,
    kubernetesApi: "https://kubernetes.default.svc",
    trustDomain: "cluster.local",
  });
  const refused: Array<[string[], Record<string, string>, RegExp]> = [
    [[], enforce, /enforce needs security.token_audiences and security.allowed_service_accounts/],
    [[], { ...enforce, ...audiences }, /enforce needs security.allowed_service_accounts/],
    [["--security-token-audiences", ","], { ...enforce, ...accounts }, /enforce needs security.token_audiences/],
    [["--security-allowed-service-accounts", "ns:*"], {}, /"ns:\*" is not namespace:account/],
    [["--security-allowed-service-accounts", "ns/one"], {}, /"ns\/one" is not namespace:account/],
    [["--security-operator-service-accounts", "one"], {}, /"one" is not namespace:account/],
    [
      ["--security-tls-key-file", "/k"],
      { ...enforce, ...audiences, ...accounts },
      /--security-tls-certificate-file and --security-tls-ca-file must be given too/,
    ],
    [["--security-jwks-file", "/j"], { ...enforce, ...audiences, ...accounts }, /token_issuer is needed/],
    [
      ["--security-jwks-file=/j", "--security-jwks-url=https://k/j"],
      { ...enforce, ...audiences, ...accounts },
      /both given/,
    ],
    [["--security-jwks-url", "http://keys.example/j"], {}, /is not an https address/],
    [["--security-kubernetes-api", "http://127.0.0.1.example"], {}, /is not an https address/],
    [["--security-kubernetes-api", ""], {}, /has no address/],
    [["--security-trust-domain", "a/b"], {}, /the trust domain "a\/b"/],
    [["--security-mode", "on"], {}, /is not one of off, enforce/],
  ];
  for (const [argv, env, message] of refused) {
    t.throws(() => read(argv, env), { code: "InvalidArgument", message }, String(message));
  }
  t.ok(read(["--security-kubernetes-api", "http://127.0.0.1:8001"]), "kubectl proxy");
  t.ok(read(["--security-tls-key-file", "/k"]), "off: nothing is needed");
});

t.test("a file of the reference, with its nulls, is taken as it is", async (t) => {
  const folder = mkdtempSync(`${tmpdir()}/weightline-control-plane-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = `${folder}/model-express.yaml`;
  writeFileSync(
    path,
    [
      "server: { host: 0.0.0.0, port: 8001, metrics_port: 9401 }",
      "database: { path: ./models.db }",
      "cache:",
      "  directory: ./cache",
      "  max_size_bytes: null",
      "  eviction:",
      "    enabled: true",
      "    policy: { type: lru, unused_threshold: 7d, max_models: null, min_free_space_bytes: null }",
      "    check_interval: 1h",
      "logging: { level: info, format: pretty, file: null, structured: false }",
      "security: { mode: off, token_audiences: null, allowed_service_accounts: [], cache_ttl_secs: 60 }",
    ].join("\n"),
  );
  const { values, notices } = read(["--config", path]);
  t.match(values, { host: "0.0.0.0", logFile: "", cacheMaxSize: 0, evictionMaxModels: 0, tokenAudiences: [] });
  t.notMatch(notices.join("\n"), /max_size_bytes|max_models|token_audiences/, "null is not given");
  writeFileSync(path, "server:\n  port: null\n");
  t.throws(() => read(["--config", path]), { message: /server.port is null, and must have a value/ });
});

t.test(
  "28: service links of Services named redis and model-express-server, alone and beside real settings",
  async (t) => {
    const link = "tcp://10.0.0.5:6379";
    const note = (name: string) => `${name}=${link} is a Kubernetes service link and is not used`;
    for (const [env, notices] of [
      [{ REDIS_PORT: link }, [note("REDIS_PORT")]],
      [{ REDIS_PORT: link, REDIS_HOST: "r" }, [note("REDIS_PORT")]],
      [{ REDIS_PORT: link, REDIS_URL: "redis://:hunter2@r:6379" }, [note("REDIS_PORT")]],
      [{ MX_REDIS_PORT: "7", REDIS_PORT: link }, []],
      [{ MX_REDIS_PORT: link, REDIS_PORT: "7" }, [note("MX_REDIS_PORT")]],
      [{ MODEL_EXPRESS_SERVER_PORT: link }, [note("MODEL_EXPRESS_SERVER_PORT")]],
      [{ MODEL_EXPRESS_SERVER_METRICS_PORT: link }, [note("MODEL_EXPRESS_SERVER_METRICS_PORT")]],
    ] as const) {
      const configuration = read([], env);
      t.same(configuration.notices.toSorted(), [...notices].toSorted(), JSON.stringify(env));
      t.match(configuration.values, { port: 8001, metricsPort: 9401 });
      t.ok(Number.isInteger(configuration.values.redisPort), "never NaN");
      t.notMatch(`${configuration.notices.join()}${effectiveText(CONTROL_PLANE_OPTIONS, configuration)}`, "hunter2");
    }
    t.equal(read(["--port", "9"], { MODEL_EXPRESS_SERVER_PORT: link }).values.port, 9);
  },
);
