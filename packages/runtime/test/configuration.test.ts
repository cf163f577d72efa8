import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import {
  effectiveText,
  helpText,
  option,
  optionTypes,
  readConfiguration,
  sampleText,
  type WeightlineError,
} from "@weightline/runtime";
import t from "tap";
import { parse } from "yaml";

const folder = mkdtempSync(`${tmpdir()}/weightline-config-`);
t.teardown(() => rmSync(folder, { recursive: true }));

const { port, text, toggle, duration, byteSize, choice, list, seconds, integer } = optionTypes;
const table = {
  port: option({
    type: port,
    yaml: "server.port",
    flag: "--port",
    short: "-p",
    env: ["T_PORT", "T_OLD_PORT"],
    default: 8001,
    description: "the port",
  }),
  name: option({
    type: text,
    yaml: "server.name",
    flag: "--name",
    default: "n",
    description: "the name",
    check: (name) => (name.length > 5 ? `the name ${name} is too long` : undefined),
  }),
  secret: option({
    type: text,
    yaml: "server.secret",
    flag: "--secret",
    env: ["T_SECRET"],
    default: "",
    description: "a secret",
    secret: true,
  }),
  on: option({ type: toggle, yaml: "on", flag: "--on", env: ["T_ON"], default: false, description: "on" }),
  wait: option({
    type: duration(1, 86_400_000),
    yaml: "wait",
    flag: "--wait",
    env: ["T_WAIT"],
    default: 10_000,
    description: "wait",
  }),
  size: option({ type: byteSize, yaml: "size", flag: "--size", default: 1024, description: "size" }),
  level: option({ type: choice(["a", "b"]), yaml: "level", flag: "--level", default: "a", description: "level" }),
  words: option({ type: list, yaml: "words", flag: "--words", default: [], description: "words" }),
  secs: option({ type: seconds(1, 100), env: ["T_SECS"], default: 30_000, description: "secs" }),
  count: option({ type: integer(1, 9), yaml: "count", default: 3, description: "count" }),
  old: option({
    type: text,
    yaml: "old",
    flag: "--old",
    env: ["T_OLD"],
    default: "",
    description: "old",
    withoutEffect: "it is gone",
  }),
};

const read = (argv: string[], env: Record<string, string> = {}) => readConfiguration({ table, argv, env });
let files = 0;
function yaml(content: string): string {
  const path = `${folder}/${files++}.yaml`;
  writeFileSync(path, content);
  return path;
}

t.test("flag before environment before YAML before default, with the origin of each", async (t) => {
  const path = yaml("server:\n  port: 3\n  name: y\nwait: 1h\n");
  const all = read(["--config", path, "--port", "1"], { T_PORT: "2", T_WAIT: "5s" });
  t.match(all.values, { port: 1, name: "y", wait: 5000, size: 1024 });
  t.match(all.origins, { port: "--port", wait: "T_WAIT", name: `${path}: server.name`, size: "default" });
  t.equal(read(["--config", path], { T_OLD_PORT: "4" }).values.port, 4, "the older variable counts too");
  t.equal(read(["-p", "7"]).values.port, 7);
  t.equal(read(["--port=8"]).values.port, 8);
  t.match(read(["--on", "--words", "a, b,,c"]).values, { on: true, words: ["a", "b", "c"] });
  t.match(read(["--on", "off"]).values, { on: false });
  t.equal(read([], { T_SECS: "90" }).values.secs, 90_000);
  t.equal(read(["--size", "1.5GiB"]).values.size, 1.5 * 2 ** 30);
});

t.test("what is wrong is named with its origin, value, what is allowed, and a way out", async (t) => {
  const cases: Array<[string[], Record<string, string>, RegExp]> = [
    [["--prot", "1"], {}, /option --prot is not known/],
    [["--port"], {}, /--port needs a value/],
    [["--port", "70000"], {}, /--port "70000" is not a port from 0 to 65535/],
    [["--port", "1e3"], {}, /not a port/],
    [["--level", "c"], {}, /--level "c" is not one of a, b/],
    [["stray"], {}, /"stray" is not an option/],
    [[], { T_PORT: "x" }, /T_PORT "x" is not a port/],
    [[], { T_ON: "maybe" }, /T_ON "maybe" is not true, 1, yes, on or/],
    [["--wait", "2 days"], {}, /not a duration from 1ms to 1d/],
    [["--name", "too-long"], {}, /the name too-long is too long \(from --name\)/],
    [["--config", yaml("server:\n  prot: 1\n")], {}, /server.prot is not known/],
    [["--config", yaml("server: 3\n")], {}, /server must be a section/],
    [["--config", yaml("server:\n  port: '3'\n")], {}, /server.port "\\"3\\"" is not a port|server.port/],
    [["--config", yaml("count: 10\n")], {}, /count "10" is not a whole number from 1 to 9/],
    [["--config", yaml("- a\n")], {}, /is not a mapping/],
    [["--config", yaml("{")], {}, /cannot be read/],
    [["--config", `${folder}/none`], {}, /cannot be read/],
  ];
  for (const [argv, env, pattern] of cases) {
    t.throws(() => read(argv, env), { code: "InvalidArgument", message: pattern }, pattern.source);
  }
  try {
    read(["--prot", "1"]);
    t.fail("it was taken");
  } catch (error) {
    t.match((error as WeightlineError).wayOut, /did you mean --port/);
  }
});

t.test("a partial YAML keeps the defaults; an empty one too", async (t) => {
  t.match(read(["--config", yaml("")]).values, { port: 8001, wait: 10_000 });
  t.match(read(["--config", yaml("server:\n")]).values, { port: 8001 });
});

t.test(
  "a Kubernetes service link is recognised, not used, and named; a name without effect is said once",
  async (t) => {
    const linked = read([], { T_PORT: "tcp://10.0.0.5:6379" });
    t.equal(linked.values.port, 8001);
    t.match(linked.notices, [/T_PORT=tcp:\/\/10.0.0.5:6379 is a Kubernetes service link and is not used/]);
    t.match(read(["--old", "x"]).notices, [/--old has no effect: it is gone/]);
  },
);

t.test("secrets are never shown", async (t) => {
  const configuration = read(["--secret", "hunter2"]);
  t.notMatch(effectiveText(table, configuration), /hunter2/);
  t.match(effectiveText(table, configuration), /server.secret: \[secret\] {2}# --secret/);
});

t.test("help names every flag; the sample file parses back to the defaults", async (t) => {
  const help = helpText("prog", "does", table, ["prog --port 1"]);
  for (const entry of Object.values(table)) {
    if (entry.flag !== undefined && entry.withoutEffect === undefined) {
      t.match(help, entry.flag);
    }
  }
  const sample = sampleText("prog", table);
  t.match(parse(sample), { server: { port: 8001, name: "n" }, on: false, level: "a" });
  t.match(read(["--config", yaml(sample)]).values, read([]).values);
  for (const [flag, action] of [
    ["--help", "help"],
    ["--validate-config", "validate"],
    ["--print-config", "print"],
    ["--generate-config", "generate"],
  ] as const) {
    t.equal(read([flag]).action, action);
  }
});
