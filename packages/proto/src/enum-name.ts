import type { DescEnum } from "@bufbuild/protobuf";

/**
 * The word for an enum value as commands print it: the value's own name in lower case without its enum's prefix
 * ("filling" for HOLDING_STATE_FILLING). A number that the enum lacks, from a newer program, becomes "unknown-<number>".
 */
export function enumName(descriptor: DescEnum, value: number): string {
  const found = descriptor.values.find((candidate) => candidate.number === value);
  if (found === undefined) {
    return `unknown-${value}`;
  }
  const prefix = descriptor.sharedPrefix ?? "";
  const name = found.name.toLowerCase();
  return name.startsWith(prefix) ? name.slice(prefix.length) : name;
}
