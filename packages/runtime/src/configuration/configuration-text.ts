import { COMMON_FLAGS, type Configuration, tableEntries } from "./configuration.ts";
import { acceptsNone, type Option } from "./option.ts";

const MASK = "[secret]";

function shown(option: Option<unknown>, value: unknown): string {
  if (option.secret === true && value !== "") {
    return MASK;
  }
  return option.type.format(value);
}

/** The default, as documents show it; "" for none. */
function shownDefault(option: Option<unknown>): string {
  return option.defaultText ?? (acceptsNone(option) ? "" : shown(option, option.default));
}

function helpLines(option: Option<unknown>): string[] {
  const flags = [option.flag, option.short].filter((name) => name !== undefined);
  const env = option.env ?? [];
  const names = flags.length > 0 ? flags : env.length > 0 ? env : [option.yaml ?? ""];
  const fallback = shownDefault(option);
  const sources = [
    ...(flags.length > 0 && env.length > 0 ? [`environment ${env.join(", ")}`] : []),
    ...(option.yaml === undefined || names[0] === option.yaml ? [] : [`YAML ${option.yaml}`]),
    `default ${fallback === "" ? "none" : fallback}`,
  ];
  return [
    `  ${names.join(", ")} (${option.type.allowed})`,
    `      ${option.description}`,
    `      ${sources.join("; ")}`,
  ];
}

/** The text of --help. */
export function helpText(program: string, summary: string, table: object, examples: readonly string[]): string {
  const options = tableEntries(table)
    .map(([, option]) => option)
    .filter(({ withoutEffect }) => withoutEffect === undefined);
  const without = options.filter(({ flag }) => flag === undefined);
  return [
    `${program}: ${summary}`,
    "",
    `usage: ${program} [options]`,
    "",
    "Settings: flag > environment > YAML (--config) > default.",
    "",
    ...options.filter(({ flag }) => flag !== undefined).flatMap(helpLines),
    ...(without.length === 0 ? [] : ["", "By environment or YAML alone:", ...without.flatMap(helpLines)]),
    "",
    ...Object.entries(COMMON_FLAGS).map(([flag, description]) => `  ${flag.padEnd(20)}${description}`),
    "",
    "Examples:",
    ...examples.map((example) => `  ${example}`),
    "",
  ].join("\n");
}

/** Effective values with their origin, secrets masked. */
export function effectiveText<Table extends object>(table: Table, configuration: Configuration<Table>): string {
  const values = configuration.values as Record<string, unknown>;
  const origins = configuration.origins as Record<string, string>;
  const lines = tableEntries(table)
    .filter(([, option]) => option.withoutEffect === undefined)
    .map(
      ([name, option]) =>
        `${option.yaml ?? option.flag ?? option.env?.[0] ?? name}: ${shown(option, values[name])}  # ${origins[name]}`,
    );
  return `${lines.join("\n")}\n`;
}

/** What a document says of an option: its meaning and what is allowed, or why it is there at all. */
function meaning(option: Option<unknown>): string {
  return option.withoutEffect === undefined
    ? `${option.description} (${option.type.allowed})`
    : `accepted, no effect: ${option.withoutEffect}`;
}

/**
 * A YAML file with every setting, its default, and what it means; those that cannot stand in a file are named in comments.
 * `values` takes the place of the defaults, by the table's names.
 */
export function sampleText(program: string, table: object, values: Readonly<Record<string, unknown>> = {}): string {
  const lines = [
    `# Settings of ${program}. Flags and environment variables count more than this file. A line that is left out, or null`,
    "# where null stands, means the default.",
  ];
  let open: string[] = [];
  const entries = tableEntries(table);
  const inFile = entries.filter(([, option]) => option.yaml !== undefined);
  inFile.sort(([, a], [, b]) => sections(a).localeCompare(sections(b)));
  for (const [name, option] of inFile) {
    const path = (option.yaml ?? "").split(".");
    const leaf = path.pop() ?? "";
    for (let depth = 0; depth < path.length; depth++) {
      if (open[depth] !== path[depth]) {
        lines.push(`${"  ".repeat(depth)}${path[depth]}:`);
        open = path.slice(0, depth + 1);
      }
    }
    open = path;
    const indent = "  ".repeat(path.length);
    const others = [option.flag, option.short, ...(option.env ?? [])].filter((other) => other !== undefined);
    const value = Object.hasOwn(values, name) ? values[name] : option.default;
    lines.push(
      `${indent}# ${meaning(option)}${others.length === 0 ? "" : `; also ${others.join(", ")}`}`,
      `${indent}${leaf}: ${yamlValue(option, value)}`,
    );
  }
  const elsewhere = entries.filter(([, { yaml }]) => yaml === undefined);
  if (elsewhere.length > 0) {
    lines.push("", "# By environment alone, with their defaults:");
  }
  for (const [, option] of elsewhere) {
    const names = [option.flag, option.short, ...(option.env ?? [])].filter((name) => name !== undefined).join(", ");
    const fallback = shownDefault(option);
    lines.push(`# ${names}${fallback === "" ? "" : `=${fallback}`}: ${meaning(option)}`);
  }
  return `${lines.join("\n")}\n`;
}

function sections(option: Option<unknown>): string {
  return (option.yaml ?? "").split(".").slice(0, -1).join(".");
}

/** The value as it stands in YAML; what means "none" as null. */
export function yamlValue(option: Option<unknown>, value: unknown): string {
  if (value === option.default && (acceptsNone(option) || option.defaultText !== undefined)) {
    return "null";
  }
  if (typeof value === "number" && option.type.fromYaml(value) === value) {
    return String(value);
  }
  if (typeof value === "boolean") {
    return String(value);
  }
  return JSON.stringify(Array.isArray(value) ? value : option.type.format(value));
}

/** The rows of docs/configuration.md. */
export function referenceRows(table: object): string[] {
  const code = (names: ReadonlyArray<string | undefined>) =>
    names
      .filter((name) => name !== undefined)
      .map((name) => `\`${name}\``)
      .join(", ");
  const cells = tableEntries(table).map(([, option]) => [
    code([option.flag, option.short]),
    code(option.env ?? []),
    code([option.yaml]),
    shownDefault(option) === "" ? "none" : shownDefault(option),
    meaning(option),
  ]);
  return [
    "| flag | environment | YAML | default | meaning |",
    "|---|---|---|---|---|",
    ...cells.map((row) => `| ${row.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`),
  ];
}
