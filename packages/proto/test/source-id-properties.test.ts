// mx_source_id against an independent implementation in Python, over identities that a seed makes: WEIGHTLINE_FUZZ_SEED gives another.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { fromBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { canonicalIdentity, computeSourceId } from "@weightline/proto";
import t from "tap";
import { createRandom, type Random } from "../../../test/support/mutation.ts";
import { SourceIdentitySchema } from "../src/gen/model_express/p2p_pb.ts";

const IDENTITIES = 5000;
const SEED = Number(process.env["WEIGHTLINE_FUZZ_SEED"] ?? 1);
const REFERENCE = fileURLToPath(new URL("./canonical_identity.py", import.meta.url));

/** Field numbers of the wire. */
const STRINGS = {
  mx_version: 1,
  model_name: 3,
  dtype: 8,
  quantization: 9,
  revision: 11,
  backend_framework_version: 12,
  torch_version: 13,
  cuda_version: 14,
  triton_version: 15,
  gpu_arch: 16,
  compile_config_digest: 17,
};
const ENUMS = { mx_source_type: 2, backend_framework: 4 };
const SIZES = { tensor_parallel_size: 5, pipeline_parallel_size: 6, expert_parallel_size: 7 };
const EXTRA_PARAMETERS = 10;

/**
 * Ranges whose lowercase has been the same since Unicode 14, the oldest that a Python in use has. Newer ones add capital letters
 * (and change whether a sigma before them is final): there V8 and Rust agree with each other and an older Python with neither.
 */
const RANGES: ReadonlyArray<readonly [number, number]> = [
  [0x00, 0x24f],
  [0x300, 0x377],
  [0x386, 0x52f],
  [0x531, 0x556],
  [0x10a0, 0x10c5],
  [0x13a0, 0x13f5],
  [0x1c90, 0x1cba],
  [0x1e00, 0x1fbc],
  [0x2028, 0x2029],
  [0x2126, 0x212b],
  [0x2160, 0x2188],
  [0x24b6, 0x24e9],
  [0x2c00, 0x2c7f],
  [0xe000, 0xe010],
  [0xff21, 0xff5a],
  [0xfffd, 0xfffd],
  [0x10400, 0x1044f],
  [0x118a0, 0x118df],
  [0x1e900, 0x1e943],
  [0x1f600, 0x1f64f],
  [0x10fff0, 0x10fffd],
];

/** What has bitten somebody: lone mappings, final sigmas, escapes, keys that an object loses or reorders. */
const PIECES = [
  "\u0130",
  "\u1e9e",
  "\u00df",
  "\u03a3",
  "A\u03a3",
  "\u039f\u0394\u039f\u03a3",
  "\u039f\u0394\u039f\u03a3 ",
  "A\u03a3.B",
  "A\u03a3\u0301",
  "\u03a3\u03a3",
  "1\u03a3",
  "\u01c5",
  "\u1fbc",
  "\u2126",
  "\u212a",
  "\u{10400}",
  "\u{1f600}",
  "\uff5e",
  "\u0000",
  "\u0001",
  "\b\t\n\f\r",
  "\u001f",
  "\u007f",
  "\u0080",
  "\u2028",
  '"',
  "\\",
  "\\u0041",
  "/",
  "__proto__",
  "__PROTO__",
  "constructor",
  "toString",
  "0",
  "10",
  "9",
  "-1",
  "01",
  "4294967295",
  "e\u0301",
  "\u00e9",
  "\u00c9",
  "Foo",
  "foo",
  "FOO",
];

function text(random: Random): string {
  let made = "";
  for (let i = random.below(5); i >= 0; i--) {
    if (random.oneIn(2)) {
      made += PIECES[random.below(PIECES.length)];
    } else {
      const [first, last] = RANGES[random.below(RANGES.length)] ?? [0, 0];
      made += String.fromCodePoint(first + random.below(last - first + 1));
    }
  }
  return random.oneIn(8) ? "" : made;
}

/** Some small letters of old got their capitals only lately. */
function isSettled(character: string): boolean {
  const code = character.codePointAt(0) ?? 0;
  return RANGES.some(([first, last]) => code >= first && code <= last);
}

/** In ASCII, for a test's output. */
function shown(value: unknown): string {
  return JSON.stringify(value).replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

type Extra = Array<[string, string]>;
type Made = Record<string, string | number | Extra>;

function make(random: Random): Made {
  const made: Made = {};
  for (const name of Object.keys(STRINGS)) {
    if (random.oneIn(2)) {
      made[name] = text(random);
    }
  }
  for (const name of Object.keys(ENUMS)) {
    made[name] = random.oneIn(10) ? ([-1, 77, 2_147_483_647, -2_147_483_648][random.below(4)] ?? 0) : random.below(5);
  }
  for (const name of Object.keys(SIZES)) {
    made[name] = random.oneIn(10) ? 4_294_967_295 - random.below(2) : random.below(9);
  }
  const extra = new Map<string, string>();
  for (let i = random.below(7); i > 0; i--) {
    const key = text(random);
    extra.set(key, text(random));
    const capitals = key.toUpperCase();
    if (random.oneIn(3) && [...capitals].every(isSettled)) {
      extra.set(capitals, text(random));
    }
  }
  made["extra_parameters"] = [...extra];
  return made;
}

/** As a stock client sends it. */
function onTheWire(made: Made): Uint8Array {
  const writer = new BinaryWriter();
  for (const [name, field] of Object.entries(STRINGS)) {
    writer.tag(field, WireType.LengthDelimited).string(String(made[name] ?? ""));
  }
  for (const [name, field] of Object.entries(ENUMS)) {
    writer.tag(field, WireType.Varint).int32(Number(made[name]));
  }
  for (const [name, field] of Object.entries(SIZES)) {
    writer.tag(field, WireType.Varint).uint32(Number(made[name]));
  }
  for (const [key, value] of made["extra_parameters"] as Extra) {
    const entry = new BinaryWriter()
      .tag(1, WireType.LengthDelimited)
      .string(key)
      .tag(2, WireType.LengthDelimited)
      .string(value);
    writer.tag(EXTRA_PARAMETERS, WireType.LengthDelimited).bytes(entry.finish());
  }
  return writer.finish();
}

t.test(`${IDENTITIES} identities have the canonical form and the id that contract.md gives them`, async (t) => {
  t.comment(`seed ${SEED}`);
  const random = createRandom(SEED);
  const all = Array.from({ length: IDENTITIES }, () => make(random));
  const collisions = all.filter(({ extra_parameters }) => {
    const keys = (extra_parameters as Extra).map(([key]) => key.toLowerCase());
    return new Set(keys).size < keys.length;
  });
  t.ok(collisions.length > IDENTITIES / 10, `${collisions.length} have keys that collide in lower case`);
  const reference = spawnSync("python3", [REFERENCE], {
    input: all.map((made) => JSON.stringify(made)).join("\n"),
    env: { ...process.env, PYTHONIOENCODING: "utf-8" },
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
  t.equal(reference.status, 0, reference.stderr);
  const [unicode, ...answers] = reference.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.ok(Number.parseFloat(unicode) >= 14, `Python has Unicode ${unicode}`);
  t.equal(answers.length, IDENTITIES);
  let differ = 0;
  for (const [i, made] of all.entries()) {
    const identity = fromBinary(SourceIdentitySchema, onTheWire(made));
    const ours = [canonicalIdentity(identity), computeSourceId(identity)];
    if (ours[0] !== answers[i][0] || ours[1] !== answers[i][1]) {
      differ += 1;
      if (differ <= 3) {
        t.fail(`seed ${SEED}, identity ${i}: ${shown(made)}: ${shown(ours)}, in Python ${shown(answers[i])}`);
      }
    }
  }
  t.equal(differ, 0, "all are the same");
});
