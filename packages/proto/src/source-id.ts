import { createHash } from "node:crypto";
import type { SourceIdentity } from "./gen/model_express/p2p_pb.ts";

/** The fields of a source identity that are hashed; absent ones count as 0 or empty. Integers are taken modulo nothing: they must be whole. */
export type IdentityFields = Omit<Partial<SourceIdentity>, "$typeName" | "$unknown">;

/** Characters that JSON needs escaped; all others, DEL and non-ASCII included, stay raw UTF-8. */
const SHORT_ESCAPES = new Map<string, string>([
  ['"', '\\"'],
  ["\\", "\\\\"],
  ["\b", "\\b"],
  ["\t", "\\t"],
  ["\n", "\\n"],
  ["\f", "\\f"],
  ["\r", "\\r"],
]);

/** Optional fields, hashed only when they are not empty: JSON key and field name, in the order of the keys. */
const OPTIONAL_FIELDS = [
  ["backend_framework_version", "backendFrameworkVersion"],
  ["compile_config_digest", "compileConfigDigest"],
  ["cuda_version", "cudaVersion"],
  ["gpu_arch", "gpuArch"],
  ["torch_version", "torchVersion"],
  ["triton_version", "tritonVersion"],
] as const satisfies ReadonlyArray<readonly [string, keyof IdentityFields]>;

/** Compares by UTF-8 bytes; JavaScript's own order is by UTF-16 units and differs above U+FFFF. */
export function compareUtf8(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a, "utf8"), Buffer.from(b, "utf8"));
}

function quote(text: string): string {
  let quoted = '"';
  for (const character of text) {
    const short = SHORT_ESCAPES.get(character);
    if (short !== undefined) {
      quoted += short;
    } else if (character < " ") {
      quoted += `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
    } else {
      quoted += character;
    }
  }
  return `${quoted}"`;
}

function lowered(text: string | undefined): string {
  return quote((text ?? "").toLowerCase());
}

/** Entries as the contract orders them: by original key, the first of two that lowercase to one wins, sorted again. */
function canonicalParameters(parameters: Readonly<Record<string, string>>): string {
  const byKey = new Map<string, string>();
  for (const key of Object.keys(parameters).sort(compareUtf8)) {
    const lowerKey = key.toLowerCase();
    if (!byKey.has(lowerKey)) {
      byKey.set(lowerKey, parameters[key] ?? "");
    }
  }
  const entries = [...byKey.keys()].sort(compareUtf8).map((key) => `${quote(key)}:${lowered(byKey.get(key))}`);
  return `{${entries.join(",")}}`;
}

/**
 * The canonical JSON of an identity, of which `mx_source_id` is the hash (contract.md, "mx_source_id"). Built by hand
 * because JavaScript's objects reorder integer-like keys and lose `__proto__`.
 */
export function canonicalIdentity(identity: IdentityFields): string {
  const members: Array<[string, string]> = [
    ["backend_framework", String(identity.backendFramework ?? 0)],
    ["dtype", lowered(identity.dtype)],
    ["expert_parallel_size", String(identity.expertParallelSize ?? 0)],
    ["extra_parameters", canonicalParameters(identity.extraParameters ?? {})],
    ["model_name", lowered(identity.modelName)],
    ["mx_source_type", String(identity.mxSourceType ?? 0)],
    ["mx_version", lowered(identity.mxVersion)],
    ["pipeline_parallel_size", String(identity.pipelineParallelSize ?? 0)],
    ["quantization", lowered(identity.quantization)],
    ["revision", lowered(identity.revision)],
    ["tensor_parallel_size", String(identity.tensorParallelSize ?? 0)],
  ];
  for (const [key, field] of OPTIONAL_FIELDS) {
    const value = identity[field];
    if (value !== undefined && value !== "") {
      members.push([key, lowered(value)]);
    }
  }
  members.sort(([a], [b]) => compareUtf8(a, b));
  return `{${members.map(([key, value]) => `"${key}":${value}`).join(",")}}`;
}

/** `mx_source_id`: the first 16 lowercase hex digits of SHA-256 over {@link canonicalIdentity}. */
export function computeSourceId(identity: IdentityFields): string {
  return createHash("sha256").update(canonicalIdentity(identity), "utf8").digest("hex").slice(0, 16);
}
