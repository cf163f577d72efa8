// A store in which every file of a holding was flipped, cut or lost, in complete and in unfinished holdings: nothing wrong is
// attached or served, and the rest stays usable.
import { createHash, randomBytes } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { writeTensors } from "./support/safetensors-file.ts";
import { changeRecord, clearFlags, contents, holdingFolder, readRecordJson } from "./support/store-files.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const origin = await cluster.startAgent("origin");

const BYTES = 200_000;
const STATES = ["complete", "filling", "loading"] as const;
const FILES = ["segment", "verified", "digests", "layout", "record.json"] as const;
const DAMAGES = ["flipped", "cut", "gone"] as const;

type State = (typeof STATES)[number];
type File = (typeof FILES)[number];
type Damage = (typeof DAMAGES)[number];

const cases = STATES.flatMap((state) =>
  FILES.flatMap((file) => DAMAGES.map((damage) => ({ state, file, damage, name: `${state}-${file}-${damage}` }))),
);
const names = [...cases.map(({ name }) => name), "whole", "resumed"];
const right = new Map<string, string>();
for (const name of names) {
  const data = randomBytes(BYTES);
  writeTensors(`${cluster.folder}/${name}.safetensors`, { w: { dtype: "U8", shape: [BYTES], data } });
  right.set(name, createHash("sha256").update(data).digest("hex"));
}

async function load(agent: Agent, name: string): Promise<void> {
  for await (const _ of agent.client.load({ path: `${cluster.folder}/${name}.safetensors`, modelName: name })) {
    // Its end is what counts.
  }
}

/** What a pod gets of each model: the digest of its bytes, or the error's class. */
async function attachAll(agent: Agent): Promise<Map<string, string>> {
  const output = await agent.python(
    `import hashlib, json
got = {}
for name in json.loads(sys.argv[1]):
    try:
        with agent.acquire(model_name=name, timeout=30) as held:
            got[name] = hashlib.sha256(bytes(held["w"].data)).hexdigest()
    except weightline.Error as error:
        got[name] = type(error).__name__
print(json.dumps(got))`,
    [JSON.stringify(names)],
  );
  return new Map(Object.entries(JSON.parse(output) as Record<string, string>));
}

function damageFile(path: string, damage: Damage): void {
  const bytes = readFileSync(path);
  if (damage === "gone") {
    rmSync(path);
  } else if (damage === "cut") {
    truncateSync(path, Math.floor(bytes.length / 2));
  } else {
    const at = Math.floor(bytes.length / 2);
    bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
    writeFileSync(path, bytes);
  }
}

/** Makes of a complete holding what a kill in the middle of its fill leaves. */
function unfinish(folder: string, source: Record<string, unknown>): void {
  const { object_digest: expected } = readRecordJson(folder);
  changeRecord(folder, {
    state: "filling",
    object_digest: "",
    source: { ...source, ...(source["kind"] === "transfer" ? { expected } : {}) },
  });
}

function damageHolding(folder: string, state: State, file: File, damage: Damage, name: string): void {
  if (state !== "complete") {
    unfinish(
      folder,
      state === "filling"
        ? { kind: "transfer", node: "origin" }
        : (readRecordJson(folder)["source"] as object as Record<string, unknown>),
    );
    // The third of four chunks had not come yet.
    writeFileSync(`${folder}/verified`, Buffer.from([0b1011]));
  }
  damageFile(file === "segment" ? `${folder}/files/${name}.safetensors` : `${folder}/${file}`, damage);
}

t.test("damage of every kind in one store", async (t) => {
  const victim = await cluster.startAgent("victim");
  const child = await cluster.startAgent("child");
  for (const name of names) {
    await load(origin, name);
    // Loaded here too, so that their records have the files that a load goes on from; the same bytes are the same object.
    await load(victim, name);
  }
  await victim.program.stop();
  const { store } = victim;
  await clearFlags(store);
  const folders = new Map(names.map((name) => [name, holdingFolder(store, name)]));
  const folderOf = (name: string) => folders.get(name) ?? "";
  for (const { state, file, damage, name } of cases) {
    damageHolding(folderOf(name), state, file, damage, name);
  }
  unfinish(folderOf("resumed"), { kind: "transfer", node: "origin" });
  writeFileSync(`${folderOf("resumed")}/verified`, Buffer.from([0b0001]));
  // What a crash between writing and renaming leaves, and what others put there.
  const whole = folderOf("whole");
  for (const path of [`${whole}/record.json.new`, `${whole}/layout.new`, `${store}/node.json.new`]) {
    writeFileSync(path, "half");
  }
  const precious = `${cluster.folder}/precious`;
  mkdirSync(precious);
  writeFileSync(`${precious}/file`, "not ours");
  symlinkSync(precious, `${store}/holdings/${"ab".repeat(16)}`);
  writeFileSync(`${store}/holdings/${"cd".repeat(16)}`, "a file with a holding's name");
  writeFileSync(`${store}/README`, "somebody's");

  // Alone first: what it serves then, it serves from this store.
  await origin.program.stop();
  const flags = ["--store", store, "--socket", victim.socket];
  const alone = await cluster.startAgent("victim", flags);
  for (const [who, agent] of [
    ["a pod here", alone],
    ["a node that pulls from it", child],
  ] as const) {
    const got = await attachAll(agent);
    t.equal(got.get("whole"), right.get("whole"), `${who}: the holding that nothing happened to`);
    const wrong = names.filter(
      (name) => /^[0-9a-f]{64}$/.test(got.get(name) ?? "") && got.get(name) !== right.get(name),
    );
    t.same(
      wrong,
      [],
      `${who}: no wrong byte; ${names.filter((name) => got.get(name) === right.get(name)).join()} are right`,
    );
  }
  t.match(alone.program.output(), /files in the store that are not ours are left alone/);

  // With a holder in reach, everything comes again.
  const again = await cluster.startAgent("origin", ["--store", origin.store, "--socket", origin.socket]);
  const got = await attachAll(alone);
  t.same(
    names.filter((name) => got.get(name) !== right.get(name)),
    [],
    "all are right again",
  );
  const ids = readdirSync(`${store}/holdings`).filter((id) => !["ab".repeat(16), "cd".repeat(16)].includes(id));
  t.equal(ids.length, names.length, "one folder for each model");
  for (const id of ids) {
    const files = Object.keys(contents(`${store}/holdings/${id}`));
    const { state } = readRecordJson(`${store}/holdings/${id}`);
    if (files.length !== 6 || state !== "complete") {
      t.fail(`${id} is ${state} and has ${files}`);
    }
  }
  t.notOk(existsSync(`${store}/node.json.new`));
  t.equal(readFileSync(`${precious}/file`, "utf8"), "not ours", "a link is not followed");
  t.equal(readFileSync(`${store}/README`, "utf8"), "somebody's");
  t.ok(existsSync(`${store}/holdings/${"cd".repeat(16)}`));

  // And the next start finds nothing to mend.
  await alone.program.stop();
  const third = await cluster.startAgent("victim", flags);
  t.match(
    third.program.output(),
    new RegExp(`"complete":${names.length},"resumed":0,"evicted":0,"checkedBytes":0,"untouched":0`),
  );
  await Promise.all([third, child, again].map(({ program }) => program.stop()));
});
