import { readFileSync } from "node:fs";
import {
  canonicalIdentity,
  computeSourceId,
  enumName,
  filesIdentity,
  type IdentityFields,
  isOwnIdentity,
} from "@weightline/proto";
import { HoldingState, HoldingStateSchema } from "@weightline/proto/common";
import t from "tap";

interface Vector {
  name: string;
  extends?: string;
  identity: Record<string, unknown>;
  canonical?: string;
  mx_source_id: string;
}

const vectors: Vector[] = JSON.parse(readFileSync(new URL("./source-ids.json", import.meta.url), "utf8")).vectors;

/** Field names of the wire become those of the generated type. */
function fieldsOf(vector: Vector): IdentityFields {
  const base = vectors.find((candidate) => candidate.name === vector.extends)?.identity ?? {};
  const fields = Object.entries({ ...base, ...vector.identity }).map(([key, value]) => [
    key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()),
    value,
  ]);
  return Object.fromEntries(fields) as IdentityFields;
}

t.test("every vector of source-ids.json", async (t) => {
  t.ok(vectors.length >= 7);
  for (const vector of vectors) {
    t.equal(computeSourceId(fieldsOf(vector)), vector.mx_source_id, vector.name);
    if (vector.canonical !== undefined) {
      t.equal(canonicalIdentity(fieldsOf(vector)), vector.canonical, `${vector.name}: canonical JSON`);
    }
  }
});

t.test("the identity that load publishes", async (t) => {
  t.equal(computeSourceId(filesIdentity("m")), "f6f376e5d10056ad", "the vector of architecture.md");
  t.not(computeSourceId(filesIdentity("m", "r")), "f6f376e5d10056ad", "a revision makes another identity");
  t.ok(isOwnIdentity(filesIdentity("m")));
});

t.test("names that bite JavaScript", async (t) => {
  const extraParameters: Record<string, string> = JSON.parse('{"__proto__":"X","constructor":"y","2":"b","10":"a"}');
  t.match(
    canonicalIdentity({ modelName: "m", extraParameters }),
    '"extra_parameters":{"10":"a","2":"b","__proto__":"x","constructor":"y"}',
  );
  t.match(
    canonicalIdentity({ modelName: "m", extraParameters: { "\u{1F600}": "1", "\uFF5E": "2" } }),
    '{"\uFF5E":"2","\u{1F600}":"1"}',
    "order is by UTF-8 bytes, not by UTF-16 units",
  );
  t.match(canonicalIdentity({ modelName: 'a"\\\u0001\n\u007f' }), '"model_name":"a\\"\\\\\\u0001\\n\u007f"');
});

t.test("lowercase is Unicode's full one, whole words at a time", async (t) => {
  // As Rust's to_lowercase has it, which is the reference's.
  const lowered: Array<[string, string]> = [
    ["\u0130", "i\u0307"],
    ["\u1E9E", "\u00DF"],
    ["\u212A", "k"],
    ["\u039F\u0394\u039F\u03A3", "\u03BF\u03B4\u03BF\u03C2"],
    ["\u039F\u0394\u039F\u03A3\u0301.", "\u03BF\u03B4\u03BF\u03C2\u0301."],
    ["\u03A3\u039F", "\u03C3\u03BF"],
    ["1\u03A3", "1\u03C3"],
    ["\u{10400}", "\u{10428}"],
    ["\u{10D50}", "\u{10D70}"],
  ];
  for (const [given, expected] of lowered) {
    t.match(canonicalIdentity({ modelName: given }), `"model_name":"${expected}"`);
  }
});

t.test("words for enum values", async (t) => {
  t.equal(enumName(HoldingStateSchema, HoldingState.FILLING), "filling");
  t.equal(enumName(HoldingStateSchema, 77), "unknown-77");
});
