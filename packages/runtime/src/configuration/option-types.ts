import { formatByteSize, parseByteSize } from "../byte-size.ts";
import { formatDuration, parseDuration } from "../duration.ts";

/** How an option's value is read and written. */
export interface OptionType<T> {
  /** What is allowed, for errors and help: "a port from 0 to 65535". */
  readonly allowed: string;
  /** The value of a text from a flag or variable; undefined when it is not one. */
  parse(text: string): T | undefined;
  /** The value as it stands in YAML; undefined when it is not one. */
  fromYaml(value: unknown): T | undefined;
  /** For printing. */
  format(value: T): string;
  /** JSON Schema of the value as it stands in YAML; may be wider than {@link OptionType.fromYaml}, never narrower. */
  readonly schema: Readonly<Record<string, unknown>>;
  /** A flag of this type may stand alone ("--flag" means true). */
  readonly bare?: boolean;
  /** Values of the form `tcp://host:port`, which Kubernetes injects, are passed over. */
  readonly ignoresServiceLinks?: boolean;
}

const TRUE_WORDS = new Set(["1", "true", "yes", "on"]);
const FALSE_WORDS = new Set(["0", "false", "no", "off"]);
const DURATION_PATTERN = "^\\s*(\\d+(\\.\\d+)?(ms|s|m|h|d))+\\s*$";
const SIZE_PATTERN = "^\\s*\\d+(\\.\\d{1,3})?\\s*[A-Za-z]*\\s*$";

/** Any text. */
export const text: OptionType<string> = {
  allowed: "text",
  parse: (value) => value,
  fromYaml: (value) => (typeof value === "string" ? value : undefined),
  format: (value) => value,
  schema: { type: "string" },
};

/** A whole number within bounds. */
export function integer(least: number, most: number): OptionType<number> {
  const within = (value: number) =>
    Number.isSafeInteger(value) && value >= least && value <= most ? value : undefined;
  return {
    allowed: `a whole number from ${least} to ${most}`,
    parse: (value) => (/^-?\d+$/.test(value.trim()) ? within(Number(value)) : undefined),
    fromYaml: (value) => (typeof value === "number" ? within(value) : undefined),
    format: String,
    schema: { type: "integer", minimum: least, maximum: most },
    ignoresServiceLinks: true,
  };
}

/** A port; 0 is any free one, or off, as the option says. */
export const port: OptionType<number> = { ...integer(0, 65535), allowed: "a port from 0 to 65535" };

/** Yes or no. */
export const toggle: OptionType<boolean> = {
  allowed: "true, 1, yes, on or false, 0, no, off",
  parse(value) {
    const word = value.trim().toLowerCase();
    return TRUE_WORDS.has(word) ? true : FALSE_WORDS.has(word) ? false : undefined;
  },
  fromYaml: (value) => (typeof value === "boolean" ? value : undefined),
  format: String,
  schema: { type: "boolean" },
  bare: true,
};

/** One of some words. */
export function choice<const Word extends string>(words: readonly Word[]): OptionType<Word> {
  const find = (value: unknown) => words.find((word) => word === value);
  return {
    allowed: `one of ${words.join(", ")}`,
    parse: (value) => find(value.trim().toLowerCase()),
    fromYaml: find,
    format: (value) => value,
    schema: { enum: [...words] },
  };
}

/** Ms, written as "10s". */
export function duration(leastMs: number, mostMs: number): OptionType<number> {
  const within = (value: number | undefined) =>
    value !== undefined && value >= leastMs && value <= mostMs ? value : undefined;
  return {
    allowed: `a duration from ${formatDuration(leastMs)} to ${formatDuration(mostMs)}, like 30s`,
    parse: (value) => within(parseDuration(value)),
    fromYaml: (value) => (typeof value === "string" ? within(parseDuration(value)) : undefined),
    format: formatDuration,
    schema: { type: "string", pattern: DURATION_PATTERN },
  };
}

/** Whole seconds in variables that existing users have ("30"), also "30s"; held as ms. */
export function seconds(least: number, most: number): OptionType<number> {
  const within = (value: number | undefined) =>
    value !== undefined && value >= least * 1000 && value <= most * 1000 ? value : undefined;
  const read = (value: string) => within(/^\d+$/.test(value.trim()) ? Number(value) * 1000 : parseDuration(value));
  return {
    allowed: `seconds from ${least} to ${most}`,
    parse: read,
    fromYaml: (value) =>
      typeof value === "number" ? within(value * 1000) : typeof value === "string" ? read(value) : undefined,
    format: formatDuration,
    schema: {
      anyOf: [
        { type: "number", minimum: least, maximum: most },
        { type: "string", pattern: `${DURATION_PATTERN}|^\\s*\\d+\\s*$` },
      ],
    },
  };
}

/** Bytes, written as "64Gi" or "64GiB"; 0 stands for the option's own rule. */
export const byteSize: OptionType<number> = {
  allowed: "a size like 64Gi (or 64GiB: 1024s), 500M (or 500MB: 1000s) or 4096",
  parse: parseByteSize,
  fromYaml: (value) =>
    typeof value === "number" && Number.isSafeInteger(value) && value >= 0
      ? value
      : typeof value === "string"
        ? parseByteSize(value)
        : undefined,
  format: (value) => (value === 0 ? "0" : formatByteSize(value)),
  schema: {
    anyOf: [
      { type: "integer", minimum: 0 },
      { type: "string", pattern: SIZE_PATTERN },
    ],
  },
};

/** Comma-separated words. */
export const list: OptionType<readonly string[]> = {
  allowed: "words with commas between them",
  parse: (value) =>
    value
      .split(",")
      .map((word) => word.trim())
      .filter((word) => word !== ""),
  fromYaml: (value) => (Array.isArray(value) && value.every((word) => typeof word === "string") ? value : undefined),
  format: (value) => value.join(","),
  schema: { type: "array", items: { type: "string" } },
};
