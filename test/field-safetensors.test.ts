// Safetensors files as users have them: accepted as the stock reader accepts them, refused with a better message.
import { closeSync, openSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import t, { type Test } from "tap";
import { createCluster } from "./support/cluster.ts";
import { pythonEnvironment, runCommand } from "./support/program.ts";
import { safetensorsBytes, writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const a = await cluster.startAgent("a", ["--memory-limit", "8GiB"]);
const b = await cluster.startAgent("b", ["--memory-limit", "8GiB"]);

const path = (name: string) => `${cluster.folder}/${name}.safetensors`;
const load = (name: string) => cluster.mxctl(["load", path(name), "--model-name", name, "--output", "json"], a);

async function refused(t: Test, name: string, ...patterns: RegExp[]): Promise<void> {
  const done = await load(name);
  t.not(done.code, 0, `${name} is refused`);
  for (const pattern of patterns) {
    t.match(done.stderr, pattern);
  }
  t.equal(done.stderr.trim().split("\n").length, 1, "one line");
  t.notOk(
    (await a.client.status({})).holdings.some(({ identities }) =>
      identities.some(({ identity }) => identity?.modelName === name),
    ),
    "nothing is left behind",
  );
}

/** What the stock reader makes of a file: "opens" or its error. */
async function stock(name: string): Promise<string> {
  const done = await runCommand(
    [
      "python3",
      "-c",
      'import sys\nfrom safetensors import safe_open\ntry:\n    with safe_open(sys.argv[1], "np") as f: list(f.keys())\n    print("opens")\nexcept Exception as e: print(e)',
      path(name),
    ],
    { env: pythonEnvironment() },
  );
  return done.stdout.trim();
}

t.test("1: zero-size tensors", async (t) => {
  writeTensors(path("zero"), {
    a: { dtype: "F32", shape: [4] },
    z: { dtype: "F8_E4M3", shape: [0], data: Buffer.alloc(0) },
    h: { dtype: "F16", shape: [2] },
  });
  t.equal(await stock("zero"), "opens");
  t.equal((await load("zero")).code, 0);
  t.equal(
    await b.python(
      'with agent.acquire(model_name="zero") as held: print(list(held.names), held["z"].shape, held["z"].nbytes, len(held["z"].data), held["z"].numpy().shape)',
    ),
    "['a', 'h', 'z'] (0,) 0 0 (0,)",
  );
});

t.test("2: __metadata__ empty, absent, null: all load, equal tensors, other objects", async (t) => {
  const data = Buffer.from([1, 2, 3, 4]);
  const tensor = '"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}';
  const digests = new Set<string>();
  for (const [name, text] of [
    ["meta-empty", `{"__metadata__":{},${tensor}}`],
    ["meta-none", `{${tensor}}`],
    ["meta-null", `{"__metadata__":null,${tensor}}`],
  ] as const) {
    writeFileSync(path(name), safetensorsBytes(text, data));
    const done = await load(name);
    t.equal(done.code, 0, done.stderr);
    digests.add(JSON.parse(done.stdout).object_digest);
    t.equal(
      await b.python(`with agent.acquire(model_name="${name}") as held: print(bytes(held["w"].data))`),
      "b'\\x01\\x02\\x03\\x04'",
    );
  }
  t.equal(digests.size, 3);
  writeFileSync(path("meta-number"), safetensorsBytes(`{"__metadata__":{"a":1},${tensor}}`, data));
  await refused(t, "meta-number", /__metadata__ is not an object of strings/);
});

t.test("3: a name twice", async (t) => {
  writeFileSync(
    path("twice"),
    safetensorsBytes(
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
      Buffer.from([1, 2]),
    ),
  );
  await refused(t, "twice", /tensor "a" appears twice: at 0-1 and at 1-2/);
});

t.test("4: names that bite JavaScript", async (t) => {
  const names = ["__proto__", "constructor", "10", "2", "a/b", "", "\u00e9", "e\u0301"];
  const members = names.map(
    (name, i) =>
      `${name === "__proto__" ? '"\\u005f\\u005fproto__"' : JSON.stringify(name)}:{"dtype":"U8","shape":[1],"data_offsets":[${i},${i + 1}]}`,
  );
  writeFileSync(path("bite"), safetensorsBytes(`{${members.join(",")}}`, Buffer.from(names.map((_, i) => i))));
  t.equal(await stock("bite"), "opens");
  t.equal((await load("bite")).code, 0);
  const seen = JSON.parse(
    await b.python(
      'import json\nwith agent.acquire(model_name="bite") as held: print(json.dumps({name: held[name].data[0] for name in held.names}))',
    ),
  );
  t.same(
    new Map(Object.entries(seen)),
    new Map(
      names.map((name, i) => [name, i] as const).sort(([x], [y]) => Buffer.compare(Buffer.from(x), Buffer.from(y))),
    ),
  );
});

t.test("5: packed types are counted in bits", async (t) => {
  writeTensors(path("packed"), {
    f4: { dtype: "F4", shape: [2, 8], data: Buffer.alloc(8, 5) },
    s: { dtype: "F8_E8M0", shape: [3], data: Buffer.from([1, 2, 3]) },
  });
  t.equal((await load("packed")).code, 0);
  t.equal(
    await b.python(
      'with agent.acquire(model_name="packed") as held: print(held["f4"].dtype, held["f4"].shape, held["f4"].nbytes, held["s"].dtype, held["s"].shape)',
    ),
    "F4 (2, 8) 8 F8_E8M0 (3,)",
  );
  writeTensors(path("half"), { f4: { dtype: "F4", shape: [3], data: Buffer.alloc(2) } });
  await refused(t, "half", /tensor "f4" of dtype F4 has 12 bits, which is not whole bytes/);
});

t.test("7: data at an odd offset: typed views equal, nothing but what must be is copied", async (t) => {
  const tensors = {
    f: { dtype: "F32", shape: [3], data: Buffer.from(new Float32Array([1, -2, 0.5]).buffer) },
    h: { dtype: "BF16", shape: [2], data: Buffer.from([0x80, 0x3f, 0, 0x40]) },
    d: { dtype: "F64", shape: [1], data: Buffer.from(new Float64Array([Math.PI]).buffer) },
  };
  writeTensors(path("odd"), tensors, { headerBytes: 257 });
  t.equal((await load("odd")).code, 0);
  t.equal(
    await b.python(
      'with agent.acquire(model_name="odd") as held: print(held["f"].numpy().tolist(), held["h"].numpy().astype("f4").tolist(), held["d"].numpy().tolist(), held.copied_bytes)',
    ),
    `[1.0, -2.0, 0.5] [1.0, 2.0] [${Math.PI}] 24`,
  );
  t.equal(
    await b.python(
      `from safetensors.numpy import load_file\nimport numpy\nwith agent.acquire(model_name="odd") as held: print(len(held.files["odd.safetensors"]) == len(open(${JSON.stringify(path("odd"))}, "rb").read()))`,
    ),
    "True",
  );
});

t.test("8: a Git LFS pointer", async (t) => {
  writeFileSync(
    path("lfs"),
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4400216536\n",
  );
  await refused(t, "lfs", /Git LFS pointer for 4400216536 bytes.*git lfs pull/);
});

t.test("10: tensors over 2 GiB and offsets over 2^32, borders equal after a pull", async (t) => {
  const size = 2415919104;
  const header = JSON.stringify({
    a: { dtype: "U8", shape: [size], data_offsets: [0, size] },
    b: { dtype: "U8", shape: [size], data_offsets: [size, 2 * size] },
    tail: { dtype: "U8", shape: [5], data_offsets: [2 * size, 2 * size + 5] },
  });
  const start = 8 + header.length;
  writeFileSync(path("large"), safetensorsBytes(header, Buffer.alloc(0)));
  truncateSync(path("large"), start + 2 * size + 5);
  const descriptor = openSync(path("large"), "r+");
  for (const [at, text] of [
    [0, "begin-a"],
    [size - 4, "end-begin"],
    [2 ** 31 - start - 3, "at-2^31"],
    [2 ** 32 - start - 3, "at-2^32"],
    [2 * size - 3, "endTAIL!"],
  ] as const) {
    writeSync(descriptor, text, start + at);
  }
  closeSync(descriptor);
  const done = await load("large");
  t.equal(done.code, 0, done.stderr);
  const expected = `b'begin-a' b'end-' b'begin' b'at-2^31' b'at-2^32' b'TAIL!' ${size}`;
  const code = `with agent.acquire(model_name="large", timeout=120) as held:
    f, s = held.files["large.safetensors"], ${start}
    a, b = held["a"].data, held["b"].data
    print(bytes(a[:7]), bytes(a[-4:]), bytes(b[:5]), bytes(f[2**31-3:2**31+4]), bytes(f[2**32-3:2**32+4]), bytes(held["tail"].data), held["b"].nbytes)`;
  t.equal(await a.python(code), expected);
  t.equal(await b.python(code), expected);
  for (const agent of [a, b]) {
    t.equal((await cluster.mxctl(["evict", "--model-name", "large"], agent)).code, 0);
  }
});

t.test("11: headers of 100,000,000 bytes and above", async (t) => {
  writeTensors(path("header-limit"), { w: { dtype: "U8", shape: [1] } }, { headerBytes: 100_000_000 });
  t.equal((await load("header-limit")).code, 0);
  for (const bytes of [100_000_001, 104_857_600]) {
    writeTensors(path("header-over"), { w: { dtype: "U8", shape: [1] } }, { headerBytes: bytes });
    await refused(t, "header-over", new RegExp(`its header says that it has ${bytes} bytes; at most 100000000`));
  }
});

const entry = (dtype: string, shape: string, begin: string, end: string) =>
  `{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${begin},${end}]}`;
const hostile: Array<[string, Buffer, RegExp]> = [
  ["empty", Buffer.alloc(0), /begins with the 8 bytes of its header's length/],
  ["seven-bytes", Buffer.alloc(7), /has 7 bytes/],
  [
    "huge-length",
    Buffer.concat([Buffer.alloc(8, 0xff), Buffer.from("{}")]),
    /18446744073709551615 bytes; at most 100000000/,
  ],
  [
    "cut-header",
    safetensorsBytes(`{"w":${entry("U8", "1", "0", "1")}}`, Buffer.alloc(1)).subarray(0, 20),
    /the header alone has/,
  ],
  ["not-json", safetensorsBytes("{nope", Buffer.alloc(0)), /not valid JSON at byte 1/],
  ["array", safetensorsBytes("[1]", Buffer.alloc(0)), /does not begin with '\{'/],
  [
    "cut-data",
    safetensorsBytes(`{"w":${entry("U8", "9", "0", "9")}}`, Buffer.alloc(8)),
    /is shorter than its header says: tensors end at byte 9 of the data, the file has 8/,
  ],
  [
    "extra-data",
    safetensorsBytes(`{"w":${entry("U8", "9", "0", "9")}}`, Buffer.alloc(10)),
    /is longer than its header says/,
  ],
  [
    "overlap",
    safetensorsBytes(`{"a":${entry("U8", "4", "0", "4")},"b":${entry("U8", "4", "2", "6")}}`, Buffer.alloc(6)),
    /tensor "b" at 2-6 overlaps tensor "a" at 0-4/,
  ],
  [
    "hole",
    safetensorsBytes(`{"a":${entry("U8", "1", "0", "1")},"b":${entry("U8", "1", "2", "3")}}`, Buffer.alloc(3)),
    /leaves a hole: bytes 1-2/,
  ],
  [
    "backwards",
    safetensorsBytes(`{"a":${entry("U8", "1", "5", "4")}}`, Buffer.alloc(5)),
    /offsets 5-4 that end before they begin/,
  ],
  [
    "above-2-53",
    safetensorsBytes(`{"a":${entry("U8", "1", "9007199254740993", "9007199254740994")}}`, Buffer.alloc(5)),
    /9007199254740993-9007199254740994/,
  ],
  [
    "above-2-64",
    safetensorsBytes(`{"a":${entry("U8", "1", "0", "18446744073709551616")}}`, Buffer.alloc(5)),
    /data_offsets that are not two whole numbers/,
  ],
  [
    "shape-overflow",
    safetensorsBytes(`{"a":${entry("F64", "4294967296,4294967296,4294967296", "0", "8")}}`, Buffer.alloc(8)),
    /size passes 2\^64 bits/,
  ],
  [
    "wrong-size",
    safetensorsBytes(`{"a":${entry("F32", "2", "0", "4")}}`, Buffer.alloc(4)),
    /has 4 bytes at 0-4; its dtype and shape need 8/,
  ],
  [
    "negative",
    safetensorsBytes(`{"a":${entry("U8", "-1", "0", "1")}}`, Buffer.alloc(1)),
    /a dimension that is not a whole number/,
  ],
  [
    "float-offset",
    safetensorsBytes(`{"a":${entry("U8", "1", "0", "1.0")}}`, Buffer.alloc(1)),
    /data_offsets that are not two whole numbers/,
  ],
  ["deep", safetensorsBytes(`{"a":${"[".repeat(10_000)}`, Buffer.alloc(1)), /nested deeper than/],
  [
    "surrogate",
    safetensorsBytes(`{"\\ud800":${entry("U8", "1", "0", "1")}}`, Buffer.alloc(1)),
    /half a surrogate pair/,
  ],
  [
    "long-name",
    safetensorsBytes(`{"${"x".repeat(513)}":${entry("U8", "1", "0", "1")}}`, Buffer.alloc(1)),
    /has 513 bytes; at most 512/,
  ],
  [
    "rank-17",
    safetensorsBytes(`{"a":${entry("U8", Array(17).fill("1").join(","), "0", "1")}}`, Buffer.alloc(1)),
    /rank 17; at most 16/,
  ],
];

t.test("headers that lie, are cut off or are nonsense: refused, as the stock reader does", async (t) => {
  for (const [name, bytes, pattern] of hostile) {
    writeFileSync(path(name), bytes);
    await refused(t, name, pattern);
    if (!["long-name", "rank-17"].includes(name)) {
      t.not(await stock(name), "opens", `the stock reader refuses ${name} too`);
    }
  }
});
