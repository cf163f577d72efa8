// The examples of docs/local-api.md run as they stand there; field case 43: tied weights are one tensor in the file.
import { readFileSync } from "node:fs";
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { cleanEnvironment, ROOT, runCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const agent = await cluster.startAgent("a");
const text = readFileSync(`${ROOT}docs/local-api.md`, "utf8");
const blocks = (language: string) =>
  [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map(([, body = ""]) => body);
const env = cleanEnvironment({ MX_AGENT_SOCKET: agent.socket });

t.test("the shell's examples", async (t) => {
  const examples = blocks("sh");
  t.ok(examples.length >= 1);
  for (const example of examples) {
    const done = await runCommand(["bash", "-euc", example], { env });
    t.equal(done.code, 0, done.stderr);
    t.equal(JSON.parse(done.stdout).node, "a");
  }
});

t.test("the offer by hand", async (t) => {
  const [example = ""] = blocks("python");
  const done = await runCommand(["python3", "-c", example], { env });
  t.equal(done.code, 0, done.stderr);
  const [given, sealed = "", released] = done.stdout.trim().split("\n");
  t.equal(given, "{'ok': True, 'segment': 0, 'missing': 0}");
  t.match(sealed, /^True \S{44}$/);
  t.equal(released, "{'released': True}");
});

t.test("every call of the service is in the document", async (t) => {
  const proto = readFileSync(`${ROOT}packages/proto/proto/weightline/local/v1/local.proto`, "utf8");
  const calls = [...proto.matchAll(/^ {2}rpc (\w+)/gm)].map(([, name = ""]) => name);
  t.ok(calls.length >= 12);
  for (const name of calls) {
    t.ok(text.includes(`\`${name}\``), name);
  }
});

t.test(
  "43: tied weights offered under two names are one item and an alias; a file with one name has one",
  async (t) => {
    const output = await agent.python(`
tied = bytes(range(250)) * 4
with agent.offer(identity={"model_name": "tied", "extra_parameters": {"weightline.kind": "t"}}, tensors=[("wte", "U8", (1000,))], aliases={"lm_head": "wte"}) as filling:
    filling.write("lm_head", tied)
    held = filling.seal()
print(list(held.names), held.nbytes, bytes(held["wte"].data) == bytes(held["lm_head"].data) == tied)
print(held._layout.place(0) == held._layout.place(1), held._layout.owner(1))`);
    t.same(output.split("\n"), ["['lm_head', 'wte'] 1000 True", "True 0"]);
    const path = `${cluster.folder}/wte.safetensors`;
    writeTensors(path, { wte: { dtype: "U8", shape: [1000] } });
    const loaded = await cluster.mxctl(["load", path, "--model-name", "untied", "--output", "json"], agent);
    t.equal(JSON.parse(loaded.stdout).items, 1);
    t.equal(await agent.python('print(list(agent.acquire(model_name="untied").names))'), "['wte']");
  },
);
