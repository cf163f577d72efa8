import { create, toBinary } from "@bufbuild/protobuf";
import { type SourceIdentity, SourceIdentitySchema } from "./gen/model_express/p2p_pb.ts";

/** contract.md's field names, as records keep them. */
const FIELDS = SourceIdentitySchema.fields.map((field) => [field.name, field.localName] as const);

/** An identity as records keep it: the contract's field names, original case, only what is set. */
export function identityToJson(identity: SourceIdentity): Record<string, unknown> {
  const json: Record<string, unknown> = {};
  for (const [name, localName] of FIELDS) {
    const value: unknown = identity[localName as keyof SourceIdentity];
    const empty =
      value === "" || value === 0 || (typeof value === "object" && value !== null && Object.keys(value).length === 0);
    if (!empty) {
      json[name] = value;
    }
  }
  return json;
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value.isWellFormed();
}

function isStringMap(value: unknown): value is Record<string, string> {
  const isMap = typeof value === "object" && value !== null && !Array.isArray(value);
  return isMap && Object.entries(value).every(([key, entry]) => isText(key) && isText(entry));
}

function fits(value: unknown, wanted: unknown): boolean {
  if (typeof wanted === "object") {
    return isStringMap(value);
  }
  return typeof wanted === "string" ? isText(value) : typeof value === typeof wanted;
}

/** The identity of a record's JSON; undefined when a field has a wrong type or range. Unknown fields are left out. */
export function identityFromJson(json: unknown): SourceIdentity | undefined {
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    return undefined;
  }
  const entries = new Map(Object.entries(json));
  const fields: Record<string, unknown> = {};
  for (const [name, localName] of FIELDS) {
    const value = entries.get(name);
    if (value === undefined) {
      continue;
    }
    const wanted: unknown = create(SourceIdentitySchema)[localName as keyof SourceIdentity];
    if (!fits(value, wanted)) {
      return undefined;
    }
    fields[localName] = value;
  }
  const identity = create(SourceIdentitySchema, fields);
  try {
    // Numbers that its fields cannot have do not encode.
    toBinary(SourceIdentitySchema, identity);
  } catch {
    return undefined;
  }
  return identity;
}
