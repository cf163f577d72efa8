// Every setting that existing users have, by every way in which they give it.
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { CONTROL_PLANE_OPTIONS } from "@weightline/control-plane";
import { readConfiguration, tableEntries } from "@weightline/runtime";
import t from "tap";
import { stringify } from "yaml";
import { ROOT, runCommand, startProgram } from "../../../test/support/program.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-settings-`);
t.teardown(() => rmSync(folder, { recursive: true }));
type Name = keyof typeof CONTROL_PLANE_OPTIONS;

interface Row {
  name: Name;
  default: unknown;
  yaml?: string;
  flags?: readonly string[];
  env?: readonly string[];
  /** Two values, each as text and as what it means: one for the way that is tried, one for all weaker ways. */
  text: readonly [string, string];
  value: readonly [unknown, unknown];
  /** In YAML, where that is not the text. */
  inYaml?: readonly [unknown, unknown];
}

const numbers = { text: ["7", "8"], value: [7, 8], inYaml: [7, 8] } as const;
const words = { text: ["x", "y"], value: ["x", "y"] } as const;
const ROWS: readonly Row[] = [
  {
    name: "host",
    default: "",
    yaml: "server.host",
    flags: ["--host"],
    env: ["MODEL_EXPRESS_SERVER_HOST"],
    text: ["0.0.0.0", "::1"],
    value: ["0.0.0.0", "::1"],
  },
  {
    name: "port",
    default: 8001,
    yaml: "server.port",
    flags: ["--port", "-p"],
    env: ["MODEL_EXPRESS_SERVER_PORT"],
    ...numbers,
  },
  {
    name: "metricsPort",
    default: 9401,
    yaml: "server.metrics_port",
    flags: ["--metrics-port"],
    env: ["MODEL_EXPRESS_SERVER_METRICS_PORT"],
    ...numbers,
  },
  {
    name: "drainTimeoutMs",
    default: 10_000,
    yaml: "server.drain_timeout",
    flags: ["--drain-timeout"],
    env: ["MODEL_EXPRESS_DRAIN_TIMEOUT"],
    text: ["5s", "1m"],
    value: [5000, 60_000],
  },
  {
    name: "connectionsPerAddress",
    default: 1024,
    yaml: "server.max_connections_per_address",
    env: ["MODEL_EXPRESS_SERVER_MAX_CONNECTIONS_PER_ADDRESS"],
    ...numbers,
  },
  {
    name: "databasePath",
    default: "./models.db",
    yaml: "database.path",
    flags: ["--database-path", "-d"],
    env: ["MODEL_EXPRESS_DATABASE_PATH"],
    ...words,
  },
  {
    name: "cacheDirectory",
    default: "./cache",
    yaml: "cache.directory",
    flags: ["--cache-directory"],
    env: ["MODEL_EXPRESS_CACHE_DIRECTORY"],
    ...words,
  },
  { name: "cacheMaxSize", default: 0, yaml: "cache.max_size_bytes", ...numbers },
  {
    name: "evictionEnabled",
    default: true,
    yaml: "cache.eviction.enabled",
    flags: ["--cache-eviction-enabled"],
    env: ["MODEL_EXPRESS_CACHE_EVICTION_ENABLED"],
    text: ["off", "yes"],
    value: [false, true],
    inYaml: [false, true],
  },
  { name: "evictionType", default: "lru", yaml: "cache.eviction.policy.type", ...words },
  {
    name: "evictionThreshold",
    default: 604_800_000,
    yaml: "cache.eviction.policy.unused_threshold",
    text: ["1h", "2h"],
    value: [3_600_000, 7_200_000],
  },
  { name: "evictionMaxModels", default: 0, yaml: "cache.eviction.policy.max_models", ...numbers },
  { name: "evictionMinFree", default: 0, yaml: "cache.eviction.policy.min_free_space_bytes", ...numbers },
  {
    name: "evictionInterval",
    default: 3_600_000,
    yaml: "cache.eviction.check_interval",
    text: ["30s", "2h"],
    value: [30_000, 7_200_000],
  },
  {
    name: "logLevel",
    default: "info",
    yaml: "logging.level",
    flags: ["--log-level", "-l"],
    env: ["MODEL_EXPRESS_LOG_LEVEL"],
    text: ["trace", "error"],
    value: ["trace", "error"],
  },
  {
    name: "logFormat",
    default: "pretty",
    yaml: "logging.format",
    flags: ["--log-format"],
    env: ["MODEL_EXPRESS_LOG_FORMAT"],
    text: ["json", "compact"],
    value: ["json", "compact"],
  },
  {
    name: "logFile",
    default: "",
    yaml: "logging.file",
    text: [`${folder}/a.log`, `${folder}/b.log`],
    value: [`${folder}/a.log`, `${folder}/b.log`],
  },
  {
    name: "logStructured",
    default: false,
    yaml: "logging.structured",
    text: ["true", "false"],
    value: [true, false],
    inYaml: [true, false],
  },
  {
    name: "announceIntervalMs",
    default: 10_000,
    yaml: "directory.announce_interval",
    flags: ["--announce-interval"],
    env: ["MODEL_EXPRESS_ANNOUNCE_INTERVAL"],
    text: ["5s", "1m"],
    value: [5000, 60_000],
  },
  {
    name: "heartbeatTimeoutMs",
    default: 90_000,
    env: ["MX_HEARTBEAT_TIMEOUT_SECS"],
    text: ["7", "8"],
    value: [7000, 8000],
  },
  { name: "gcTimeoutMs", default: 3_600_000, env: ["MX_GC_TIMEOUT_SECS"], text: ["7", "8"], value: [7000, 8000] },
  { name: "huggingFace", default: "", env: ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"], ...words },
  {
    name: "ngc",
    default: "",
    env: ["NGC_API_KEY", "NGC_CLI_API_KEY", "NGC_CLI_HOME", "NGC_API_ENDPOINT", "NGC_AUTH_ENDPOINT"],
    ...words,
  },
  { name: "googleCredentials", default: "", env: ["GOOGLE_APPLICATION_CREDENTIALS"], ...words },
  {
    name: "aws",
    default: "",
    env: [
      "AWS_ACCESS_KEY_ID",
      "AWS_SECRET_ACCESS_KEY",
      "AWS_SESSION_TOKEN",
      "AWS_DEFAULT_REGION",
      "AWS_REGION",
      "AWS_ENDPOINT_URL",
    ],
    ...words,
  },
];
/** Settings whose meaning is tested where it is: the backend's, Redis', and security's. */
const ELSEWHERE = /^(metadataBackend|redis|reaper|statusTtl)/;

const read = (argv: readonly string[], env: Record<string, string>) =>
  readConfiguration({ table: CONTROL_PLANE_OPTIONS, argv, env });

let files = 0;
function yamlFile(path: string, value: unknown): string {
  const file = `${folder}/${files++}.yaml`;
  writeFileSync(file, stringify(path.split(".").reduceRight<unknown>((inner, key) => ({ [key]: inner }), value)));
  return file;
}

t.test(
  "each row: flag over environment over YAML over default, each by itself and against the weaker ones",
  async (t) => {
    for (const row of ROWS) {
      const { name, text, value, yaml } = row;
      const inYaml = row.inYaml ?? text;
      const expect = (
        argv: readonly string[],
        env: Record<string, string>,
        wanted: unknown,
        origin: string | RegExp,
      ) => {
        const { values, origins } = read(argv, env);
        t.same(values[name], wanted, `${name} from ${origin}`);
        t.match(origins[name], origin);
        return values;
      };
      const untouched = expect([], {}, row.default, "default");
      const option = CONTROL_PLANE_OPTIONS[name];
      t.same(
        [option.yaml, option.flag, option.short, option.env],
        [yaml, row.flags?.[0], row.flags?.[1], row.env],
        `${name} has these names and no others`,
      );
      const weakerYaml = yaml === undefined ? [] : ["--config", yamlFile(yaml, inYaml[1])];
      if (yaml !== undefined) {
        const file = yamlFile(yaml, inYaml[0]);
        const values = expect(["--config", file], {}, value[0], `${file}: ${yaml}`);
        t.same({ ...values, [name]: null }, { ...untouched, [name]: null }, "a partial file keeps all other defaults");
      }
      for (const [i, variable] of (row.env ?? []).entries()) {
        const weaker = Object.fromEntries((row.env ?? []).slice(i + 1).map((other) => [other, text[1]]));
        expect(weakerYaml, { ...weaker, [variable]: text[0] }, value[0], variable);
        t.same(
          read(weakerYaml, { [variable]: "" }).values[name],
          yaml === undefined ? row.default : value[1],
          "empty: not set",
        );
      }
      for (const flag of row.flags ?? []) {
        const weaker = Object.fromEntries((row.env ?? []).map((other) => [other, text[1]]));
        expect([flag, text[0], ...weakerYaml], weaker, value[0], flag);
      }
    }
  },
);

t.test("the rows are all settings, but those that have their tests elsewhere", async (t) => {
  const rows = new Set<string>(ROWS.map(({ name }) => name));
  const missing = tableEntries(CONTROL_PLANE_OPTIONS)
    .filter(([, { yaml }]) => yaml?.startsWith("security.") !== true)
    .map(([name]) => name)
    .filter((name) => !rows.has(name) && !ELSEWHERE.test(name));
  t.same(missing, []);
});

t.test("a name without effect says so once, with every variable that was set", async (t) => {
  const { notices } = read(["-d", "x"], { HF_TOKEN: "hunter2", HF_ENDPOINT: "http://h", AWS_REGION: "r" });
  t.same(notices.toSorted(), [
    "-d has no effect: models are not downloaded by this version",
    "AWS_REGION has no effect: models are not downloaded by this version",
    "HF_TOKEN, HF_ENDPOINT have no effect: models are not downloaded by this version",
  ]);
});

t.test("--validate-config as a process: values with their origins, or exit 1 and one line", async (t) => {
  const run = (argv: readonly string[], env: Record<string, string> = {}) =>
    runCommand(
      [process.execPath, "--disable-warning=ExperimentalWarning", `${ROOT}packages/control-plane/src/main.ts`, ...argv],
      { env },
    );
  const file = yamlFile("server.metrics_port", 7);
  const good = await run(["--validate-config", "-c", file, "-l", "warn"], {
    MODEL_EXPRESS_SERVER_PORT: "9",
    HF_TOKEN: "hunter2",
    MODEL_EXPRESS_LOG_FORMAT: "",
  });
  t.equal(good.code, 0, good.stderr);
  const lines = good.stdout.split("\n");
  for (const line of [
    "server.port: 9  # MODEL_EXPRESS_SERVER_PORT",
    `server.metrics_port: 7  # ${file}: server.metrics_port`,
    "logging.level: warn  # -l",
    "logging.format: pretty  # default",
    "MX_METADATA_BACKEND: memory  # default",
  ]) {
    t.ok(lines.includes(line), line);
  }
  t.notMatch(`${good.stdout}${good.stderr}`, "hunter2");
  for (const [argv, env, message] of [
    [["--validate-config", "--prot", "1"], {}, /--prot is not known; way out: did you mean --port/],
    [
      ["--validate-config"],
      { MODEL_EXPRESS_SERVER_PORT: "http" },
      /MODEL_EXPRESS_SERVER_PORT "http" is not a port from 0 to 65535/,
    ],
    [["--validate-config", "-c", yamlFile("server.prot", 1)], {}, /server.prot is not known.*did you mean server.port/],
  ] as const) {
    const bad = await run(argv, env);
    t.equal(bad.code, 1, argv.join(" "));
    t.equal(bad.stdout, "");
    t.match(bad.stderr, message);
    t.equal(bad.stderr.split("\n").length, 2, "one line");
  }
});

t.test("memory that nobody chose: one warning line says what a restart loses; chosen, none does", async (t) => {
  const flags = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--log-format", "json"];
  for (const [env, wanted] of [
    [{}, 1],
    [{ MX_METADATA_BACKEND: "memory" }, 0],
  ] as const) {
    const program = startProgram("control-plane", flags, { env });
    t.teardown(() => program.stop());
    await program.waitFor(/"msg":"ready"/);
    t.equal(await program.stop(), 0);
    const lines = program
      .output()
      .split("\n")
      .filter((line) => line.includes("MX_METADATA_BACKEND is not set"));
    t.equal(lines.length, wanted);
    if (wanted === 1) {
      t.match(lines[0], /"level":40,.*kept in memory; a restart forgets them/);
    }
  }
});

t.test(
  "logging as a process: structured is JSON whatever the format, a file is written, and opened anew on SIGHUP",
  async (t) => {
    const file = `${folder}/deep/control-plane.log`;
    const config = `${folder}/logging.yaml`;
    writeFileSync(config, stringify({ logging: { file, format: "compact", structured: true, level: "info" } }));
    const flags = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "-c", config];
    const program = startProgram("control-plane", flags);
    t.teardown(() => program.stop());
    const lines = () => (existsSync(file) ? readFileSync(file, "utf8").trimEnd().split("\n") : []);
    for (let i = 0; i < 1000 && !lines().some((line) => line.includes('"msg":"ready"')); i++) {
      await sleep(20);
    }
    t.ok(lines().every((line) => JSON.parse(line).program === "control-plane"));
    t.equal(program.output(), "", "nothing beside the file");
    renameSync(file, `${file}.1`);
    program.kill("SIGHUP");
    for (let i = 0; i < 1000 && lines().length === 0; i++) {
      await sleep(20);
    }
    t.match(lines(), [/"event":"log-reopened"/], "a moved file is opened anew");
    t.equal(await program.stop(), 0);
  },
);
