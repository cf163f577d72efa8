// Settings as people and templates get them wrong: nothing where a value belongs, half lists, files that cannot be read.
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import {
  checkAddresses,
  checkLogFile,
  createLogger,
  describeError,
  option,
  optionTypes,
  parseAddress,
  parseAddresses,
  parseByteSize,
  readConfiguration,
  readYamlFile,
  sampleText,
} from "@weightline/runtime";
import t from "tap";

const folder = mkdtempSync(`${tmpdir()}/weightline-faults-`);
t.teardown(() => rmSync(folder, { recursive: true }));

const { byteSize, duration, integer, list, port, text } = optionTypes;
const table = {
  file: option({ type: text, yaml: "logging.file", default: "", description: "f", check: checkLogFile }),
  most: option({ type: integer(0, 9), yaml: "policy.most", default: 0, optional: true, description: "m" }),
  size: option({
    type: byteSize,
    yaml: "policy.size",
    default: 0,
    optional: true,
    description: "s",
    withoutEffect: "x",
  }),
  words: option({ type: list, yaml: "words", default: [], description: "w" }),
  port: option({
    type: port,
    yaml: "server.port",
    flag: "--port",
    short: "-p",
    env: ["T_PORT"],
    default: 8001,
    description: "p",
  }),
  wait: option({ type: duration(1, 1000), yaml: "wait", flag: "--wait", default: 10, description: "w" }),
  name: option({ type: text, yaml: "name", flag: "--name", default: "n", description: "n" }),
  peers: option({
    type: text,
    yaml: "peers",
    flag: "--peers",
    default: "a:1",
    description: "p",
    check: checkAddresses,
  }),
};
const read = (argv: string[], env: Record<string, string> = {}) => readConfiguration({ table, argv, env });
let files = 0;
function yaml(content: string): string {
  const path = `${folder}/${files++}.yaml`;
  writeFileSync(path, content);
  return path;
}

t.test("YAML null is no value: the default of what may have none, a clear error for what must have one", async (t) => {
  const nothing = "logging:\n  file: null\npolicy:\n  most: ~\n  size:\nwords: null\n";
  const { values, origins, notices } = read(["--config", yaml(nothing)]);
  t.match(values, { file: "", most: 0, size: 0, words: [] });
  t.equal(origins.most, "default");
  t.same(notices, [], "what is not given cannot be without effect");
  for (const key of ["server:\n  port", "wait", "name"]) {
    const path = yaml(`${key}: null\n`);
    const name = key.replace(":\n  ", ".");
    t.throws(() => read(["--config", path]), {
      code: "InvalidArgument",
      message: `${path}: ${name} is null, and must have a value`,
      field: `${path}: ${name}`,
      wayOut: /leave the line out.*default/,
    });
  }
  t.match(read(["--config", yaml(sampleText("p", table))]).values, read([]).values, "the sample file parses back");
});

t.test("a YAML file with a fault: file, line, column and what is wrong, never its text", async (t) => {
  const secret = "hunter2";
  const broken: Array<[string, RegExp]> = [
    [`a: 1\npassword: ${secret}: x\n`, /line 2, column/],
    [`password: "${secret}\nb: 1\n`, /line \d, column \d+: a quote, bracket, comma or colon is missing/],
    [`a:\n\t${secret}: 1\n`, /line 2, column 1: .*tab/],
    [`${secret}: 1\n${secret}: 2\n`, /line 2, column 1: a key stands there twice/],
    [`a: *${secret}\n`, /cannot be read: an alias names no anchor/],
    [`a: !${secret} x\n`, /line 1, column 4: .*tag/],
    [`a: {${secret}: 1\n`, /line \d, column \d+/],
    [`a: 1\n---\nb: ${secret}\n`, /more than one document/],
    [`%${secret} 1\na: 1\n`, /line 2, column 1/],
    [`a: "\\q${secret}"\n`, /line 1, column/],
    [`a: b: ${secret}\n`, /line 1, column/],
    [`a: ]${secret}\n`, /line 1, column/],
    [`- ${secret}\n`, /is not a mapping of settings/],
    [secret, /is not a mapping of settings/],
  ];
  for (const [content, pattern] of broken) {
    const path = yaml(content);
    try {
      readYamlFile(path, "--config");
      t.fail(`taken: ${content}`);
    } catch (error) {
      const all = `${describeError(error)}${JSON.stringify(error)}${(error as Error).stack}${String((error as Error).cause)}`;
      t.match(describeError(error), pattern, content);
      t.match(describeError(error), `--config ${path}`);
      t.match(describeError(error), /; way out: /);
      t.notMatch(all, secret, content);
    }
  }
  const warnings: unknown[] = [];
  process.on("warning", (warning) => warnings.push(warning));
  t.throws(() => read(["--config", yaml(`a: !${secret} x\n`)]), { code: "InvalidArgument" });
  await new Promise((resolve) => setImmediate(resolve));
  t.same(warnings, [], "the parser's own warnings would show lines too");
  for (const [path, pattern] of [
    [`${folder}/none.yaml`, /there is no such file/],
    [folder, /it is a folder/],
  ] as const) {
    t.throws(() => readYamlFile(path, "--config"), { code: "InvalidArgument", message: pattern });
  }
  for (const [content, shown] of [
    [`server:\n  port:\n    password: ${secret}\n`, /server.port "a section" is not a port/],
    [`server:\n  port: [${secret}]\n`, /server.port "a list" is not a port/],
  ] as const) {
    t.throws(() => read(["--config", yaml(content)]), { code: "InvalidArgument", message: shown });
  }
  t.throws(() => read(["--config", yaml(`server: ${secret}\n`)]), { message: /server must be a section/, value: "" });
});

t.test("byte sizes as Kubernetes writes them: Ki, Mi, Gi are binary, k, M, G decimal", async (t) => {
  for (const [given, bytes] of [
    ["64Gi", 64 * 2 ** 30],
    ["64GiB", 64 * 2 ** 30],
    ["64G", 64e9],
    ["500M", 500e6],
    ["500MB", 500e6],
    ["1Ki", 1024],
    ["1k", 1000],
    ["1K", 1000],
    ["2Ti", 2 ** 41],
    ["1Pi", 2 ** 50],
    ["1.5Gi", 1.5 * 2 ** 30],
    ["1 gib", 2 ** 30],
  ] as const) {
    t.equal(parseByteSize(given), bytes, given);
  }
  // 500m is half a byte to Kubernetes; whoever writes it means something else.
  for (const given of ["500m", "64g", "1gi", "1e3", "5 Q", "1Ei"]) {
    t.equal(parseByteSize(given), undefined, given);
  }
  t.match(byteSize.allowed, /64Gi.*500M/);
});

t.test("a flag is no value of the flag before it, unless it is attached", async (t) => {
  for (const argv of [
    ["--name", "--wait", "5ms"],
    ["--name", "-p", "1"],
    ["--name", "--no-such-flag"],
    ["--name=x", "--wait"],
    ["--config", "--name", "x"],
  ]) {
    t.throws(
      () => read(argv),
      { code: "InvalidArgument", message: /^--(name|wait|config) needs a value$/ },
      argv.join(" "),
    );
  }
  t.throws(() => read(["--name", "--wait", "5ms"]), {
    code: "InvalidArgument",
    message: /needs/,
    wayOut: /--name=--wait/,
  });
  t.equal(read(["--name=--wait"]).values.name, "--wait");
  t.throws(() => read(["--port", "-1"]), { message: /--port "-1" is not a port/ }, "a number is a value");
});

t.test("lists of addresses: no empty part, no address of two words", async (t) => {
  t.same(parseAddresses(" a:1 , [fd00::1]:2 ", "--peers"), [
    { host: "a", port: 1 },
    { host: "fd00::1", port: 2 },
  ]);
  for (const given of ["", " ", ",", ",,", "a:1,", ",a:1", "a:1,,b:2", "a:1, ,b:2", " , "]) {
    t.throws(
      () => parseAddresses(given, "--peers"),
      {
        code: "InvalidArgument",
        field: "--peers",
        value: given,
        message: /--peers ".*" (names no address|has an empty part)/,
        wayOut: /host:port/,
      },
      JSON.stringify(given),
    );
    t.throws(
      () => read(["--peers", given]),
      { message: /\(from --peers\)$/ },
      `checked with the settings: ${JSON.stringify(given)}`,
    );
  }
  for (const given of ["a b:1", "a:1 b:2", "a\t:1", "a:1;b:2", "a/b:1", "a:0"]) {
    t.throws(() => parseAddress(given, "--peers"), { code: "InvalidArgument", field: "--peers" }, given);
  }
});

t.test("a log file that cannot be opened: key, path, reason, way out; with --validate-config too", async (t) => {
  writeFileSync(`${folder}/plain`, "");
  mkdirSync(`${folder}/logs`);
  for (const [path, reason] of [
    [`${folder}/logs`, /it is a folder/],
    [`${folder}/plain/agent.log`, /.*is not a folder/],
  ] as const) {
    t.throws(() => read(["--config", yaml(`logging:\n  file: ${path}\n`), "--validate-config"]), {
      code: "InvalidArgument",
      message: new RegExp(`^the log file ${path} cannot be opened: ${reason.source}.* \\(from .*: logging.file\\)$`),
      wayOut: /standard error/,
    });
    t.throws(() => createLogger({ program: "p", level: "info", format: "json", file: path }), {
      code: "InvalidArgument",
      field: "logging.file",
      value: path,
      message: new RegExp(`^logging.file ${path} cannot be opened: ${reason.source}`),
      wayOut: /standard error/,
    });
  }
  t.throws(
    () => createLogger({ program: "p", level: "info", format: "json", file: "/proc/none/agent.log" }),
    { code: "InvalidArgument", field: "logging.file" },
    "a folder that cannot be made ends, too",
  );
  const good = `${folder}/logs/deeper/agent.log`;
  read(["--config", yaml(`logging:\n  file: ${good}\n`), "--validate-config"]);
  t.same(readdirSync(`${folder}/logs`), [], "a check makes nothing");
  createLogger({ program: "p", level: "info", format: "json", file: good }).info("up");
  t.same(readdirSync(`${folder}/logs/deeper`), ["agent.log"]);
});

t.test("28: service links of every protocol are passed over, and the next source counts", async (t) => {
  for (const link of ["tcp://10.0.0.5:6379", "udp://10.0.0.5:53", "sctp://[fd00::1]:9"]) {
    const linked = read([], { T_PORT: link });
    t.equal(linked.values.port, 8001);
    t.same(linked.notices, [`T_PORT=${link} is a Kubernetes service link and is not used`]);
  }
  const file = yaml("server:\n  port: 7\n");
  t.equal(read(["--config", file], { T_PORT: "tcp://10.0.0.5:6379" }).values.port, 7);
});
