// Model folders as users have them: the index decides, links stay inside, nothing is found by globbing.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import t, { type Test } from "tap";
import { createCluster } from "./support/cluster.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const a = await cluster.startAgent("a");

let count = 0;
/** A new empty folder. */
function folder(name = "model"): string {
  const path = `${cluster.folder}/${count++}/${name}`;
  mkdirSync(path, { recursive: true });
  return path;
}

const u8 = (value: number, size = 4) => ({ dtype: "U8", shape: [size], data: Buffer.alloc(size, value) });
const index = (map: Record<string, string>) => JSON.stringify({ metadata: {}, weight_map: map });
const load = (path: string, name: string, more: string[] = []) =>
  cluster.mxctl(["load", path, "--model-name", name, "--output", "json", ...more], a);
const read = (name: string, code: string) =>
  a.python(
    `with agent.acquire(model_name="${name}"${code.includes("REV") ? ", revision=sys.argv[1]" : ""}) as held: ${code}`,
  );

async function refused(t: Test, path: string, exit: number, ...patterns: RegExp[]): Promise<void> {
  const before = readdirSync(`${a.store}/holdings`).length;
  const done = await load(path, "refused");
  t.equal(done.code, exit, done.stderr);
  for (const pattern of patterns) {
    t.match(done.stderr, pattern);
  }
  t.equal(readdirSync(`${a.store}/holdings`).length, before, "nothing is left behind");
}

/** A Hugging Face cache folder with snapshots of one shard each. */
function cacheFolder(revisions: readonly string[], ref?: string): string {
  const root = folder("models--o--m");
  mkdirSync(`${root}/blobs`);
  mkdirSync(`${root}/refs`);
  mkdirSync(`${root}/snapshots`);
  revisions.forEach((revision, i) => {
    mkdirSync(`${root}/snapshots/${revision}`, { recursive: true });
    writeTensors(`${root}/blobs/blob${i}`, { w: u8(i + 1) });
    writeFileSync(`${root}/blobs/config${i}`, `{"n":${i}}`);
    symlinkSync(`../../blobs/blob${i}`, `${root}/snapshots/${revision}/model.safetensors`);
    symlinkSync(`../../blobs/config${i}`, `${root}/snapshots/${revision}/config.json`);
  });
  if (ref !== undefined) {
    writeFileSync(`${root}/refs/main`, ref);
  }
  return root;
}

const ONE = "1".repeat(40);
const TWO = "2".repeat(40);

t.test("9: a late shard is one byte short: file, expected and actual, before anything is read", async (t) => {
  const path = folder();
  for (const i of [1, 2, 3]) {
    writeTensors(`${path}/model-0000${i}-of-00003.safetensors`, { [`w${i}`]: u8(i, 1000) });
  }
  writeFileSync(
    `${path}/model.safetensors.index.json`,
    index({
      w1: "model-00001-of-00003.safetensors",
      w2: "model-00002-of-00003.safetensors",
      w3: "model-00003-of-00003.safetensors",
    }),
  );
  t.equal((await load(path, "whole")).code, 0);
  const size = 8 + JSON.stringify({ w3: { dtype: "U8", shape: [1000], data_offsets: [0, 1000] } }).length + 1000;
  truncateSync(`${path}/model-00003-of-00003.safetensors`, size - 1);
  await refused(t, path, 1, /model-00003-of-00003.safetensors is shorter.*1000.*999/);
});

t.test("12: a snapshot's links into blobs are followed, all others refused with link and target", async (t) => {
  const root = cacheFolder([ONE]);
  const done = await load(`${root}/snapshots/${ONE}`, "hf");
  t.equal(done.code, 0, done.stderr);
  t.match(JSON.parse(done.stdout), { revision: ONE }, "the snapshot's name is the revision");
  t.equal(
    await a.python(
      `with agent.acquire(model_name="hf", revision="${ONE}") as held: print(sorted(held.files), bytes(held["w"].data))`,
    ),
    "['config.json', 'model.safetensors'] b'\\x01\\x01\\x01\\x01'",
  );
  symlinkSync("/etc/passwd", `${root}/snapshots/${ONE}/secret.txt`);
  await refused(t, `${root}/snapshots/${ONE}`, 1, /the link secret.txt leads to \/etc\/passwd, outside .*models--o--m/);
  rmSync(`${root}/snapshots/${ONE}/secret.txt`);
  symlinkSync("../../blobs/none", `${root}/snapshots/${ONE}/gone.json`);
  await refused(
    t,
    `${root}/snapshots/${ONE}`,
    1,
    /the link gone.json points to ..\/..\/blobs\/none, which is not there; incomplete download\?/,
  );
  const plain = folder();
  writeTensors(`${plain}/model.safetensors`, { w: u8(1) });
  symlinkSync(`${root}/blobs/config0`, `${plain}/config.json`);
  await refused(t, plain, 1, /the link config.json leads to .*outside/);
});

t.test(
  "13: the repository's root: refs/main, trimmed, else the only snapshot; several: exit 2 and the list",
  async (t) => {
    const byRef = await load(cacheFolder([ONE, TWO], `${TWO}\n`), "by-ref");
    t.match(JSON.parse(byRef.stdout), { revision: TWO });
    const only = await load(cacheFolder([ONE]), "only");
    t.match(JSON.parse(only.stdout), { revision: ONE });
    await refused(t, cacheFolder([ONE, TWO]), 2, new RegExp(`several snapshots.*${ONE}, ${TWO}`));
    await refused(t, cacheFolder([ONE, TWO], "../../../etc"), 2, /several snapshots/);
    await refused(t, cacheFolder([]), 3, /has no snapshot/);
  },
);

t.test("14: the index names shards that are not there: all listed, before any read", async (t) => {
  const path = folder();
  writeTensors(`${path}/a.safetensors`, { a: u8(1) });
  writeFileSync(
    `${path}/model.safetensors.index.json`,
    index({ a: "a.safetensors", b: "b.safetensors", c: "c.safetensors" }),
  );
  await refused(
    t,
    path,
    1,
    /names 2 of 3 files that are not there: b.safetensors, c.safetensors; incomplete download\?/,
  );
  const old = folder();
  writeFileSync(
    `${old}/model.safetensors.index.json`,
    index(Object.fromEntries(Array.from({ length: 30 }, (_, i) => [`t${i}`, `old-${i}.safetensors`]))),
  );
  for (let i = 0; i < 15; i++) {
    writeTensors(`${old}/new-${i}.safetensors`, { [`t${i}`]: u8(i) });
  }
  await refused(t, old, 1, /names 30 of 30 files/);
});

t.test(
  "15: of safetensors only the indexed; other weight formats stay out; the reply lists what was ignored",
  async (t) => {
    const path = folder();
    writeTensors(`${path}/model-00001-of-00002.safetensors`, { a: u8(1) });
    writeTensors(`${path}/model-00002-of-00002.safetensors`, { b: u8(2) });
    writeTensors(`${path}/model-00001-of-00004.safetensors`, { a: u8(9) });
    writeFileSync(
      `${path}/model.safetensors.index.json`,
      index({ a: "model-00001-of-00002.safetensors", b: "model-00002-of-00002.safetensors" }),
    );
    for (const name of [
      "pytorch_model.bin",
      "x.pt",
      "x.pth",
      "x.gguf",
      "x.h5",
      "x.msgpack",
      "x.onnx",
      "config.json",
      ".hidden",
    ]) {
      writeFileSync(`${path}/${name}`, name);
    }
    mkdirSync(`${path}/sub`);
    writeFileSync(`${path}/sub/tokenizer.json`, "{}");
    const done = await load(path, "split");
    t.same(JSON.parse(done.stdout).ignored_files, [
      "model-00001-of-00004.safetensors",
      "pytorch_model.bin",
      "x.gguf",
      "x.h5",
      "x.msgpack",
      "x.onnx",
      "x.pt",
      "x.pth",
    ]);
    t.equal(
      await read(
        "split",
        'print(sorted(held.files), held["a"].data[0], sum(map(len, held.files.values())) == held.nbytes)',
      ),
      "['config.json', 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors', 'model.safetensors.index.json', 'sub/tokenizer.json'] 1 True",
    );
    const single = `${folder()}/odd name.safetensors`;
    writeTensors(single, { w: u8(3) });
    t.equal((await load(single, "single")).code, 0);
    t.equal(await read("single", "print(list(held.files))"), "['odd name.safetensors']");
  },
);

t.test("16: a tensor in two shards: the index decides; without an index it is an error with both", async (t) => {
  const path = folder();
  writeTensors(`${path}/1.safetensors`, { w: u8(1) });
  writeTensors(`${path}/2.safetensors`, { w: u8(2), v: u8(3) });
  await refused(t, path, 1, /tensor "w" is in 1.safetensors and in 2.safetensors/);
  writeFileSync(`${path}/model.safetensors.index.json`, index({ w: "1.safetensors", v: "2.safetensors" }));
  const done = await load(path, "both");
  t.match(JSON.parse(done.stdout), { extra_tensors: 1, items: 2 });
  t.equal(await read("both", 'print(held["w"].data[0], held["v"].data[0])'), "1 3");
  writeFileSync(
    `${path}/model.safetensors.index.json`,
    index({ w: "1.safetensors", v: "2.safetensors", x: "1.safetensors" }),
  );
  await refused(t, path, 1, /gives tensor "x" to 1.safetensors, which does not have it/);
});

t.test("17: unusual shard names come from the index only", async (t) => {
  const path = folder();
  mkdirSync(`${path}/part a`);
  const names = ["model.safetensors-00001-of-00002.safetensors", "layers-0.safetensors", "part a/0.safetensors"];
  for (const [i, name] of names.entries()) {
    writeTensors(`${path}/${name}`, { [`t${i}`]: u8(i) });
  }
  writeFileSync(
    `${path}/model.safetensors.index.json`,
    index(Object.fromEntries(names.map((name, i) => [`t${i}`, name]))),
  );
  t.equal((await load(path, "unusual")).code, 0);
  t.equal(await read("unusual", "print(list(held.names))"), "['t0', 't1', 't2']");
});

t.test("an index that leaves the folder, is no JSON, has no map, or names what is no file", async (t) => {
  const path = folder();
  writeTensors(`${path}/m.safetensors`, { w: u8(1) });
  const file = `${path}/model.safetensors.index.json`;
  for (const [text, pattern] of [
    [index({ w: "../m.safetensors" }), /given to "..\/m.safetensors", which leaves the folder/],
    [index({ w: "/etc/passwd" }), /"\/etc\/passwd", which leaves the folder/],
    ["{", /not valid JSON/],
    ["{}", /no "weight_map" object/],
    ['{"weight_map":{"w":1}}', /tensor "w" is not given to a file/],
    ['{"weight_map":{}}', /weight_map is empty/],
    ['{"weight_map":{"w":"m.safetensors","w":"n.safetensors"}}', /given to m.safetensors and to n.safetensors/],
  ] as const) {
    writeFileSync(file, text);
    await refused(t, path, 1, pattern);
  }
  execFileSync("mkfifo", [`${path}/pipe.safetensors`]);
  writeFileSync(file, index({ w: "pipe.safetensors" }));
  await refused(t, path, 1, /pipe.safetensors is a FIFO, not a file/);
});

t.test("any folder's files; an empty folder, a FIFO, a folder of links in a circle", async (t) => {
  const path = folder();
  writeFileSync(`${path}/notes.txt`, "hello");
  writeFileSync(`${path}/empty`, "");
  mkdirSync(`${path}/deep/er`, { recursive: true });
  writeFileSync(`${path}/deep/er/x.bin`, "abc");
  t.equal((await load(path, "files")).code, 0);
  t.equal(
    await read("files", "print({k: bytes(v) for k, v in held.files.items()}, list(held.names))"),
    "{'deep/er/x.bin': b'abc', 'empty': b'', 'notes.txt': b'hello'} []",
  );
  await refused(t, folder(), 1, /no files that could be loaded/);
  const fifo = `${folder()}/f`;
  execFileSync("mkfifo", [fifo]);
  await refused(t, fifo, 1, /is a FIFO/);
  const circle = folder();
  symlinkSync(".", `${circle}/loop`);
  await refused(t, circle, 1, /deeper than|leads to/);
});

t.test("22: paths are sent absolute from the caller's directory; one that the node does not see: exit 3", async (t) => {
  const path = folder("data");
  mkdirSync(`${path}/m`);
  writeTensors(`${path}/m/model.safetensors`, { w: u8(1) });
  const { mxctl } = await import("./support/program.ts");
  const done = await mxctl(["--socket", a.socket, "load", "./m", "--model-name", "relative"], { cwd: path });
  t.equal(done.code, 0, done.stderr);
  await refused(t, "/data/only/the/caller/sees", 3, /node a does not see \/data\/only\/the\/caller\/sees/);
});

t.test("--load-root bounds what is read", async (t) => {
  const inside = folder("inside");
  writeTensors(`${inside}/model.safetensors`, { w: u8(1) });
  const bounded = await cluster.startAgent("bounded", ["--load-root", inside]);
  t.equal((await cluster.mxctl(["load", inside, "--model-name", "in"], bounded)).code, 0);
  const outside = await cluster.mxctl(["load", "/etc", "--model-name", "out"], bounded);
  t.equal(outside.code, 5);
  t.match(outside.stderr, /\/etc is outside .*inside, below which this node loads.*--load-root/);
  const dotted = await cluster.mxctl(["load", `${inside}/../..`, "--model-name", "out"], bounded);
  t.equal(dotted.code, 5);
});
