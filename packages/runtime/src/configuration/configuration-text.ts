import { COMMON_FLAGS, type Configuration, tableEntries } from "./configuration.ts";
import { acceptsNone, type Option } from "./option.ts";

const MASK = "[secret]";

function shown(option: Option<unknown>, value: unknown): string {
  if (option.secret === true && value !== "") {
    return MASK;
  }
  return option.type.format(value);
}

/** The text of --help. */
export function helpText(program: string, summary: string, table: object, examples: readonly string[]): string {
  const lines = [
    `${program}: ${summary}`,
    "",
    `usage: ${program} [options]`,
    "",
    "Settings: flag > environment > YAML (--config) > default.",
    "",
  ];
  for (const [, option] of tableEntries(table)) {
    if (option.flag === undefined || option.withoutEffect !== undefined) {
      continue;
    }
    const names = [option.flag, option.short].filter((name) => name !== undefined).join(", ");
    const fallback = acceptsNone(option) ? "" : shown(option, option.default);
    const sources = [
      ...(option.env !== undefined && option.env.length > 0 ? [`environment ${option.env.join(", ")}`] : []),
      ...(option.yaml === undefined ? [] : [`YAML ${option.yaml}`]),
      `default ${fallback === "" ? "none" : fallback}`,
    ];
    lines.push(`  ${names} (${option.type.allowed})`, `      ${option.description}`, `      ${sources.join("; ")}`);
  }
  lines.push("");
  for (const [flag, description] of Object.entries(COMMON_FLAGS)) {
    lines.push(`  ${flag.padEnd(20)}${description}`);
  }
  lines.push("", "Examples:", ...examples.map((example) => `  ${example}`), "");
  return lines.join("\n");
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

/** A YAML file with every setting that can stand in one, its default, and what it means. */
export function sampleText(program: string, table: object): string {
  const lines = [`# Settings of ${program}. Every line shows its default; flags and environment variables count more.`];
  let open: string[] = [];
  const entries = tableEntries(table).filter(([, option]) => option.yaml !== undefined);
  entries.sort(([, a], [, b]) => sections(a).localeCompare(sections(b)));
  for (const [, option] of entries) {
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
    lines.push(`${indent}# ${option.description} (${option.type.allowed})`, `${indent}${leaf}: ${yamlValue(option)}`);
  }
  return `${lines.join("\n")}\n`;
}

function sections(option: Option<unknown>): string {
  return (option.yaml ?? "").split(".").slice(0, -1).join(".");
}

function yamlValue(option: Option<unknown>): string {
  const value = option.default;
  if (acceptsNone(option)) {
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
