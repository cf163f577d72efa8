// The documents that list things list all of them.
import { readFileSync } from "node:fs";
import { CONTROL_PLANE_OPTIONS } from "@weightline/control-plane";
import { AGENT_OPTIONS } from "@weightline/node-agent";
import { COMMON_FLAGS, ERROR_CODES, helpText, sampleText, tableEntries } from "@weightline/runtime";
import t from "tap";
import { parse } from "yaml";
import { createCluster, freePort } from "../support/cluster.ts";
import { ROOT } from "../support/program.ts";
import { generatedDocuments } from "./generated-documents.ts";
import { loggedEvents } from "./logged-events.ts";

const read = (file: string) => readFileSync(`${ROOT}${file}`, "utf8");

t.test("docs/errors.md has a heading for each code, and none for others", async (t) => {
  const headings = [...read("docs/errors.md").matchAll(/^## (\S+)$/gm)].map(([, code]) => code);
  t.same(headings.toSorted(), Object.keys(ERROR_CODES).toSorted());
});

t.test("the reference and the JSON schemas are what the options give", async (t) => {
  const documents = generatedDocuments();
  t.equal(documents.size, 3);
  for (const [file, text] of documents) {
    t.equal(read(file), text, `${file}: run node test/repository/generated-documents.ts`);
  }
});

t.test("the reference, --help, the file, and the schema have every option of both daemons", async (t) => {
  const text = read("docs/configuration.md");
  for (const [program, table] of [
    ["control-plane", CONTROL_PLANE_OPTIONS],
    ["node-agent", AGENT_OPTIONS],
  ] as const) {
    const help = helpText(program, "", table, []);
    const file = sampleText(program, table);
    const settings = parse(file);
    const schema = JSON.parse(read(`docs/schema/${program}.schema.json`));
    for (const [name, option] of tableEntries(table)) {
      for (const other of [option.flag, ...(option.env ?? [])].filter((each) => each !== undefined)) {
        t.match(file, other, `the file names ${other}`);
        if (option.withoutEffect === undefined) {
          t.match(help, other, `--help names ${other}`);
        }
      }
      if (option.yaml !== undefined) {
        const keys = option.yaml.split(".");
        t.not(
          keys.reduce((section, key) => section?.[key], settings),
          undefined,
          `the file has ${name}`,
        );
        t.ok(
          keys.reduce((section, key) => section?.properties[key], schema),
          `the schema has ${name}`,
        );
      }
    }
  }
  for (const flag of Object.keys(COMMON_FLAGS)) {
    t.ok(text.includes(`\`${flag}\``), flag);
  }
});

t.test("docs/events.md lists every event with its fields, and no other", async (t) => {
  const listed = new Map(
    [...read("docs/events.md").matchAll(/^\| `([a-z-]+)` \|([^|]*)\|/gm)].map(([, name = "", fields = ""]) => [
      name,
      [...fields.matchAll(/`(\w+)`/g)].map(([, field]) => field).toSorted(),
    ]),
  );
  const logged = new Map([...loggedEvents()].map(([name, fields]) => [name, [...fields].toSorted()]));
  t.ok(logged.size > 30, "they were found");
  t.same(Object.fromEntries([...listed].toSorted()), Object.fromEntries([...logged].toSorted()));
});

/** Rows of docs/metrics.md: section -> name -> [labels, kind]. */
function listedMetrics(): Map<string, Map<string, [string[], string]>> {
  const sections = read("docs/metrics.md").split(/^## /m).slice(1);
  return new Map(
    sections.map((section) => [
      section.slice(0, section.indexOf("\n")),
      new Map(
        [...section.matchAll(/^\| `([a-z_]+)(?:\{([a-z_,]+)\})?` \| (\w+) \|/gm)].map(
          ([, name = "", labels = "", kind = ""]) => [name, [labels.split(",").filter((label) => label !== ""), kind]],
        ),
      ),
    ]),
  );
}

/** The metrics of a scraped body: name -> [labels of its samples, kind]; one without samples yet has no labels here. */
function shownMetrics(body: string): Map<string, [Set<string> | undefined, string]> {
  const shown = new Map<string, [Set<string> | undefined, string]>();
  for (const [, name = "", kind = ""] of body.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
    const samples = [...body.matchAll(new RegExp(`^${name}(?:_bucket|_sum|_count)?(\\{.*\\})? `, "gm"))];
    const labels = samples.flatMap(([, text = ""]) => [...text.matchAll(/(\w+)="/g)].map(([, label = ""]) => label));
    shown.set(name, [samples.length === 0 ? undefined : new Set(labels.filter((label) => label !== "le")), kind]);
  }
  return shown;
}

t.test("docs/metrics.md lists every metric that the daemons show with kind and labels, and no other", async (t) => {
  const cluster = await createCluster();
  t.teardown(() => cluster.stop());
  const port = await freePort();
  await cluster.startControlPlane(["--metrics-port", String(port)]);
  const agent = await cluster.startAgent("a");
  const listed = listedMetrics();
  t.ok(
    ["Node agent", "Control plane", "Both"].every((section) => (listed.get(section)?.size ?? 0) > 5),
    "they were found",
  );
  for (const [section, body] of [
    ["Node agent", await agent.metrics()],
    ["Control plane", await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()],
  ] as const) {
    const wanted = new Map([...(listed.get(section) ?? []), ...(listed.get("Both") ?? [])]);
    const shown = shownMetrics(body);
    t.same([...shown.keys()].toSorted(), [...wanted.keys()].toSorted(), section);
    for (const [name, [labels, kind]] of shown) {
      const [wantedLabels, wantedKind] = wanted.get(name) ?? [[], ""];
      t.equal(kind, wantedKind, `${name}: its kind`);
      if (labels !== undefined) {
        t.same([...labels].toSorted(), wantedLabels.toSorted(), `${name}: its labels`);
      }
    }
  }
});

t.test("README, ARCHITECTURE and CONTRIBUTING name files and commands that are there", async (t) => {
  const { existsSync } = await import("node:fs");
  for (const file of ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]) {
    for (const [, path = ""] of read(file).matchAll(
      /`((?:packages|python|deploy|test|bench|demo|docs|tools)\/[A-Za-z0-9_./-]*)`/g,
    )) {
      t.ok(existsSync(`${ROOT}${path}`), `${file}: ${path}`);
    }
  }
  const commands = new Set(
    [...read("mx").matchAll(/^ {2}([a-z| -]+)\)/gm)].flatMap(([, names = ""]) =>
      names.split("|").map((name) => name.trim()),
    ),
  );
  for (const file of ["README.md", "CONTRIBUTING.md"]) {
    for (const [, command = ""] of read(file).matchAll(/\.\/mx ([a-z-]+)/g)) {
      t.ok(commands.has(command), `${file}: ./mx ${command}`);
    }
  }
});
