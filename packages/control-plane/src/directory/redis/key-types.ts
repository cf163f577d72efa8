/** What a call of the directory reads or writes. */
export interface Touched {
  sourceIds?: readonly string[];
  /** The hash field of a worker of the first source. */
  field?: string;
  node?: string;
  storeId?: string;
}

/** The keys that a call touches, each with the type that it has when it is the directory's: key, type, key, type. */
export function keyTypes(prefix: string, { sourceIds = [], field, node, storeId }: Touched): string[] {
  const types = [`${prefix}sources`, "zset", `${prefix}nodes`, "zset"];
  for (const id of sourceIds) {
    types.push(`${prefix}source:${id}`, "hash", `${prefix}changes:${id}`, "zset", `${prefix}topology:${id}`, "hash");
  }
  if (field !== undefined) {
    types.push(`${prefix}source:${sourceIds[0]}:${field}`, "hash");
  }
  if (node !== undefined) {
    types.push(`${prefix}node:${node}`, "hash");
  }
  if (storeId !== undefined) {
    types.push(`${prefix}store:${storeId}`, "string");
  }
  return types;
}
