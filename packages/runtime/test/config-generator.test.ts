// The generator as an operator runs it: a real process, a folder of its own.
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import t from "tap";
import { type Finished, pythonEnvironment, ROOT, runCommand } from "../../../test/support/program.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-generator-`);
t.teardown(() => rmSync(folder, { recursive: true }));
const TABLE = `{
  port: option({ type: optionTypes.port, yaml: "server.port", flag: "--port", env: ["T_PORT"], default: 8001, description: "the port" }),
  wait: option({ type: optionTypes.duration(1, 86400000), yaml: "server.wait", default: 10000, description: "a wait" }),
  size: option({ type: optionTypes.byteSize, yaml: "size", default: 0, optional: true, description: "a size" }),
  words: option({ type: optionTypes.list, yaml: "words", default: [], description: "some words" }),
  secret: option({ type: optionTypes.text, yaml: "secret", default: "", secret: true, description: "a secret" }),
  name: option({ type: optionTypes.text, yaml: "name", default: "this-host", defaultText: "host name", optional: true, description: "a name" }),
  here: option({ type: optionTypes.text, yaml: "here", default: "", description: "a path", check: () => "not on this machine" }),
  backend: option({ type: optionTypes.text, env: ["T_BACKEND"], default: "memory", description: "a backend" }),
}`;
const PROGRAM = `
import { option, optionTypes, runConfigGenerator } from "${ROOT}packages/runtime/src/index.ts";
const table = ${TABLE};
process.exitCode = runConfigGenerator({ program: "config_gen", subject: "prog", table, defaultFile: "prog.yaml" }, process.argv.slice(1));
`;
const generate = (...argv: string[]): Promise<Finished> =>
  runCommand([process.execPath, "--input-type=module-typescript", "-e", PROGRAM, "--", ...argv], { cwd: folder });
const read = (file: string) => readFileSync(`${folder}/${file}`, "utf8");
const write = (file: string, text: string) => writeFileSync(`${folder}/${file}`, text);

t.test("every option with its default and what it means; what is there is not touched", async (t) => {
  const first = await generate();
  t.match(first, { code: 0, stdout: "", stderr: "config_gen: prog.yaml is written\n" });
  const text = read("prog.yaml");
  for (const line of [
    "  port: 8001",
    '  wait: "10s"',
    "size: null",
    "words: null",
    "secret: null",
    "name: null",
    "here: null",
  ]) {
    t.ok(text.split("\n").includes(line), line);
  }
  t.match(text, "# the port (a port from 0 to 65535); also --port, T_PORT");
  t.match(text, "# T_BACKEND=memory: a backend");
  t.notMatch(text, "this-host", "a default of this machine is not written");
  write("prog.yaml", "server:\n  port: 1\n");
  const again = await generate();
  t.match(again, { code: 6, stderr: /prog.yaml is there already; way out: give another --output, or --overwrite/ });
  t.equal(read("prog.yaml"), "server:\n  port: 1\n");
  chmodSync(`${folder}/prog.yaml`, 0o640);
  symlinkSync("prog.yaml", `${folder}/link.yaml`);
  t.equal((await generate("-o", "link.yaml", "--overwrite")).code, 0);
  t.equal(read("prog.yaml"), text, "the file that the link means");
  t.equal(statSync(`${folder}/prog.yaml`).mode & 0o777, 0o640, "its mode stays");
  t.equal((await generate("-o", "deep/er/x.yaml")).code, 0);
  t.equal(read("deep/er/x.yaml"), text);
  t.same(readdirSync(folder).toSorted(), ["deep", "link.yaml", "prog.yaml"], "no draft is left");
});

t.test("an older file: its values stay, unknown keys are named, wrong values refused", async (t) => {
  write(
    "old.yaml",
    "# mine\nserver: { prot: 7, port: 9, wait: 90s }\nsize: 1.5GiB\nwords: [a, b]\nsecret: hunter2\nname: n1\ngone: {}\nhere: /x\n",
  );
  const done = await generate("-i", "old.yaml", "-o", "new.yaml");
  t.equal(done.code, 0);
  t.same(done.stderr.split("\n"), [
    "config_gen: old.yaml: server.prot is not known, and left out; did you mean server.port?",
    "config_gen: old.yaml: gone is not known, and left out",
    "config_gen: new.yaml is written, with the values of old.yaml",
    "",
  ]);
  const text = read("new.yaml");
  for (const line of [
    "  port: 9",
    '  wait: "90s"',
    "size: 1610612736",
    'words: ["a","b"]',
    'secret: "hunter2"',
    'name: "n1"',
    'here: "/x"',
  ]) {
    t.ok(text.split("\n").includes(line), line);
  }
  t.equal(statSync(`${folder}/new.yaml`).mode & 0o777, 0o600, "it has a secret");
  t.match(await generate("-i", "new.yaml", "-o", "same.yaml", "--dry-run", "--show-diff"), {
    code: 0,
    stdout: /^$/,
    stderr: /same.yaml would be as new.yaml is/,
  });
  for (const [content, message] of [
    ["server: { port: x }", /wrong.yaml: server.port "\\?"x\\?"" is not a port/],
    ["server: { port: null }", /server.port is null, and must have a value/],
    ["server: 3", /server must be a section/],
    ["a: [", /cannot be read/],
  ] as const) {
    write("wrong.yaml", content);
    const refused = await generate("-i", "wrong.yaml", "-o", "never.yaml");
    t.match(refused, { code: 2, stderr: message }, content);
    t.notOk(existsSync(`${folder}/never.yaml`));
  }
  t.match(await generate("-i", "none.yaml"), {
    code: 2,
    stderr: /--input none.yaml cannot be read: there is no such file/,
  });
});

t.test(
  "what would change: a unified diff that patch takes; a dry run writes nothing; secrets are masked",
  async (t) => {
    write("old.yaml", "server:\n  port: 9\nsecret: hunter2\n");
    const before = readdirSync(folder);
    const dry = await generate("-i", "old.yaml", "-o", "out.yaml", "--show-diff", "--dry-run");
    t.match(dry, { code: 0, stdout: /^--- old.yaml\n\+\+\+ out.yaml\n@@ -1,3 \+1,\d+ @@\n/ });
    t.match(dry.stdout, /^\+secret: "\[secret\]"$/m);
    const shown = await generate("-i", "old.yaml", "--dry-run");
    t.match(shown.stdout, 'secret: "[secret]"');
    t.notMatch(`${dry.stdout}${dry.stderr}${shown.stdout}${shown.stderr}`, "hunter2");
    t.same(readdirSync(folder), before, "nothing was written");
    write("plain.yaml", "server:\n  port: 9\n");
    const wet = await generate("-i", "plain.yaml", "-o", "out.yaml", "--show-diff");
    write("patched.yaml", read("plain.yaml"));
    const patched = await runCommand(["git", "apply", "--unsafe-paths", "-p0", "-"], {
      cwd: folder,
      input: wet.stdout.replace("--- plain.yaml\n+++ out.yaml", "--- patched.yaml\n+++ patched.yaml"),
    });
    t.equal(patched.code, 0, patched.stderr);
    t.equal(read("patched.yaml"), read("out.yaml"), "the patch makes the one file of the other");
    const existing = await generate("-o", "out.yaml", "--show-diff", "--overwrite");
    t.match(existing.stdout, /^- {2}port: 9$/m, "without --input: against what is there");
  },
);

t.test("what cannot be written, and what is no option of it", async (t) => {
  write("file", "");
  t.match(await generate("-o", "file/x.yaml"), { code: 2, stderr: /file\/x.yaml cannot be written: / });
  t.match(await generate("--otput", "x"), { code: 2, stderr: /'--otput'.*way out: see --help/ });
  t.match(await generate("stray"), { code: 2, stderr: /way out: see --help/ });
  const help = await generate("--help");
  t.equal(help.code, 0);
  for (const flag of ["--output", "--input", "--overwrite", "--show-diff", "--dry-run"]) {
    t.match(help.stdout, flag);
  }
});

t.test("the JSON schema takes what the program takes, and refuses unknown keys and wrong types", async (t) => {
  const schema = JSON.parse(
    (
      await runCommand([
        process.execPath,
        "--input-type=module-typescript",
        "-e",
        `import { option, optionTypes, schemaText } from "${ROOT}packages/runtime/src/index.ts"; process.stdout.write(schemaText("p", ${TABLE}));`,
      ])
    ).stdout,
  );
  t.match(schema.properties.server.properties.port, { default: 8001, description: /the port/ });
  t.notOk("default" in schema.properties.name, "a default of the machine is not in it");
  const files = [
    [{}, true],
    [{ server: null }, true],
    [{ server: { port: 1, wait: "1h30m" }, size: "64Gi", words: ["a"], name: null }, true],
    [{ size: 4096 }, true],
    [{ server: { prot: 1 } }, false],
    [{ other: 1 }, false],
    [{ server: { port: "1" } }, false],
    [{ server: { port: 65536 } }, false],
    [{ server: { port: null } }, false],
    [{ server: { wait: "soon" } }, false],
    [{ words: "a" }, false],
  ] as const;
  const checked = await runCommand(
    [
      "python3",
      "-c",
      "import json, sys, jsonschema\ns, files = json.load(sys.stdin)\nv = jsonschema.Draft202012Validator\nv.check_schema(s)\nprint(json.dumps([v(s).is_valid(f) for f in files]))",
    ],
    { env: pythonEnvironment(), input: JSON.stringify([schema, files.map(([file]) => file)]) },
  );
  t.equal(checked.code, 0, checked.stderr);
  t.same(
    JSON.parse(checked.stdout),
    files.map(([, right]) => right),
  );
});
