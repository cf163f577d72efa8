// The plain manifests, against the API schemas that a PyPI package ships, and against the programs that they start.
import { readFileSync } from "node:fs";
import { CONTROL_PLANE_OPTIONS } from "@weightline/control-plane";
import { AGENT_OPTIONS } from "@weightline/node-agent";
import { tableEntries } from "@weightline/runtime";
import t from "tap";
import { parseAllDocuments } from "yaml";
import { pythonEnvironment, ROOT, runCommand } from "./support/program.ts";

const FILES = ["deploy/server/control-plane.yaml", "deploy/daemonset/node-agent.yaml"];
const VALIDATE = `
import json, sys, kubernetes_validate as k
for document in json.load(sys.stdin):
    try:
        k.validate(document, k.latest_version(), strict=True)
        print("valid")
    except k.ValidationError as e:
        print("refused:", str(e).splitlines()[0])
`;

interface Manifest {
  kind: string;
  spec: {
    template: {
      spec: {
        containers: Array<{
          args?: string[];
          env?: Array<{ name: string }>;
          volumeMounts?: Array<{ name: string; mountPath: string }>;
        }>;
        volumes?: Array<{ name: string }>;
      };
    };
  };
}

const documents = (file: string): Manifest[] =>
  parseAllDocuments(readFileSync(`${ROOT}${file}`, "utf8")).map((document) => document.toJS());

async function validate(manifests: readonly object[]): Promise<string[]> {
  const done = await runCommand(["python3", "-c", VALIDATE], {
    env: pythonEnvironment(),
    input: JSON.stringify(manifests),
  });
  t.equal(done.code, 0, done.stderr);
  return done.stdout.trim().split("\n");
}

t.test("every document fits its schema, unknown keys included", async (t) => {
  for (const file of FILES) {
    const manifests = documents(file);
    t.same(
      await validate(manifests),
      manifests.map(() => "valid"),
      file,
    );
  }
  const [deployment] = documents(FILES[0] ?? "");
  t.same(
    await validate([
      { ...deployment, spec: { ...deployment?.spec, replcas: 3 } },
      { ...deployment, spec: { ...deployment?.spec, replicas: "3" } },
    ]),
    [
      "refused: Additional properties are not allowed ('replcas' was unexpected)",
      "refused: '3' is not of type 'integer', 'null'",
    ],
  );
});

t.test("flags and variables are ones that the programs know; every mount has its volume", async (t) => {
  for (const [file, table] of [
    [FILES[0] ?? "", CONTROL_PLANE_OPTIONS],
    [FILES[1] ?? "", AGENT_OPTIONS],
  ] as const) {
    const [workload] = documents(file);
    const pod = workload?.spec.template.spec;
    const [container] = pod?.containers ?? [];
    const options = tableEntries(table).map(([, option]) => option);
    for (const argument of container?.args?.filter((text) => text.startsWith("--")) ?? []) {
      t.ok(
        options.some(({ flag }) => flag === argument.split("=")[0]),
        argument,
      );
    }
    for (const { name } of container?.env ?? []) {
      t.ok(
        options.some(({ env }) => env?.includes(name)),
        name,
      );
    }
    for (const { name } of container?.volumeMounts ?? []) {
      t.ok(
        pod?.volumes?.some((volume) => volume.name === name),
        name,
      );
    }
  }
});

t.test("each privilege and mount has its reason in a comment", async (t) => {
  const lines = readFileSync(`${ROOT}${FILES[1]}`, "utf8").split("\n");
  const wanted =
    /^\s+(hostPID|hostNetwork|runAsUser):|^\s+- (LINUX_IMMUTABLE|LEASE|SYS_PTRACE|DAC_OVERRIDE)$|^ {12}- name: (store|sockets|cgroup|models)$/;
  lines.forEach((line, i) => {
    if (wanted.test(line)) {
      t.match(lines[i - 1], /#/, line.trim());
    }
  });
});
