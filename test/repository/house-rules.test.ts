import { readFileSync } from "node:fs";
import t from "tap";
import { ROOT, runCommand } from "../support/program.ts";

const { stdout } = await runCommand(["git", "ls-files"], { cwd: ROOT });
const files = stdout.trim().split("\n");
const read = (file: string) => readFileSync(`${ROOT}${file}`, "utf8");
const sources = files.filter((file) => /\.(ts|py|cc|h|sh|proto)$/.test(file) && !file.includes("/src/gen/"));

t.test("file names", async (t) => {
  t.ok(sources.length > 100);
  const typescript = sources.filter((file) => file.endsWith(".ts"));
  t.same(
    typescript.filter((file) => !/^[a-z0-9-]+(\.test)?\.ts$/.test(file.split("/").at(-1) ?? "")),
    [],
    "TypeScript files are kebab-case",
  );
  t.same(
    sources.filter((file) => /(^|\/)utils?\.[a-z]+$/.test(file)),
    [],
    "no file of odds and ends",
  );
});

t.test("words that must not be committed", async (t) => {
  const forbidden: Array<[RegExp, string]> = [
    [/\bTO[D]O\b|\bFIX[M]E\b|\bX[X]X\b/, "an unfinished mark"],
    [/not[ -]implemen[t]ed/i, "a stub"],
    [/\/wor[k]\/|\/roo[t]\//, "a machine's path"],
    [/\bphas[e] \d/i, "a numbered phase"],
    [/registry\.npm[j]s\.org|files\.python[h]osted/, "a registry's host"],
    [/\bA[I] assistant\b|\blanguage mode[l]\b/i, "the tools that it was written with"],
  ];
  const text = files.filter((file) => !/\.(bin|lock|yaml)$|pnpm-lock/.test(file) && !file.startsWith("LICENSE"));
  for (const file of text) {
    const content = read(file);
    for (const [pattern, what] of forbidden) {
      if (pattern.test(content)) {
        t.fail(`${file} has ${what}: ${pattern.exec(content)?.[0]}`);
      }
    }
  }
  t.ok(text.length > 150);
});

t.test("packages: one direction, through their exports alone", async (t) => {
  const may: Record<string, string[]> = {
    proto: [],
    runtime: ["proto"],
    "rdma-native": [],
    "control-plane": ["proto", "runtime"],
    "node-agent": ["proto", "runtime", "rdma-native"],
    mxctl: ["proto", "runtime"],
  };
  const imports = sources.filter(
    (file) => file.startsWith("packages/") && file.includes("/src/") && file.endsWith(".ts"),
  );
  for (const file of imports) {
    const [, own = ""] = file.split("/");
    for (const [, target = ""] of read(file).matchAll(/(?:from|import\()\s*"([^"]+)"/g)) {
      const [, other] = /^@weightline\/([a-z-]+)/.exec(target) ?? [];
      if (other !== undefined && other !== own && !may[own]?.includes(other)) {
        t.fail(`${file} imports ${target}: ${own} must not know ${other}`);
      }
      if (/^@weightline\/[a-z-]+\/(src|test)\//.test(target) || target.includes("/packages/")) {
        t.fail(`${file} imports ${target}, which is inside another package`);
      }
    }
  }
  t.ok(imports.length > 70);
  for (const name of Object.keys(may)) {
    const manifest = JSON.parse(read(`packages/${name}/package.json`));
    t.equal(manifest.license, "Apache-2.0", name);
    const known = Object.keys(manifest.dependencies ?? {}).flatMap(
      (dependency) => /^@weightline\/(.+)/.exec(dependency)?.[1] ?? [],
    );
    t.same(
      known.filter((other) => !may[name]?.includes(other)),
      [],
      `${name} depends on what it may`,
    );
  }
});

t.test("nothing below main reads the environment of a daemon", async (t) => {
  // mxctl and the addon's loader have one place each; NO_COLOR and KUBERNETES_SERVICE_HOST are facts of the surroundings.
  const allowed =
    /process\.env\["(NO_COLOR|KUBERNETES_SERVICE_HOST|WEIGHTLINE_NATIVE_BUILD)"\]|env: process\.env|runMxctl\(process\.argv\.slice\(2\), process\.env\)/;
  for (const file of sources.filter((name) => /^packages\/[^/]+\/src\//.test(name) && name.endsWith(".ts"))) {
    for (const line of read(file)
      .split("\n")
      .filter((text) => text.includes("process.env"))) {
      t.ok(allowed.test(line), `${file}: ${line.trim()}`);
    }
  }
});
