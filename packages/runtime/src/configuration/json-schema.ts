import { parse } from "yaml";
import { tableEntries } from "./configuration.ts";
import { yamlValue } from "./configuration-text.ts";
import { acceptsNone, type Option } from "./option.ts";

const DIALECT = "https://json-schema.org/draft/2020-12/schema";

/** A section of the file; one without settings may stand there as null. */
interface Section {
  type: ["object", "null"];
  additionalProperties: false;
  properties: Record<string, unknown>;
}

const emptySection = (): Section => ({ type: ["object", "null"], additionalProperties: false, properties: {} });

function settingSchema(option: Option<unknown>): Record<string, unknown> {
  const elsewhere = [option.flag, option.short, ...(option.env ?? [])].filter((name) => name !== undefined);
  const also = elsewhere.length === 0 ? "" : `; also ${elsewhere.join(", ")}`;
  const words =
    option.withoutEffect === undefined
      ? `${option.description} (${option.type.allowed})`
      : `accepted, no effect: ${option.withoutEffect}`;
  return {
    description: `${words}${also}`,
    ...(option.withoutEffect === undefined ? {} : { deprecated: true }),
    ...(acceptsNone(option) ? { anyOf: [option.type.schema, { type: "null" }] } : option.type.schema),
    ...(option.defaultText === undefined ? { default: parse(yamlValue(option, option.default)) } : {}),
  };
}

/** The JSON schema of a program's YAML file: what an editor completes and a pipeline checks. */
export function schemaText(program: string, table: object): string {
  const root = emptySection();
  for (const [, option] of tableEntries(table)) {
    if (option.yaml === undefined) {
      continue;
    }
    const path = option.yaml.split(".");
    const leaf = path.pop() ?? "";
    let section = root;
    for (const name of path) {
      section.properties[name] ??= emptySection();
      section = section.properties[name] as Section;
    }
    section.properties[leaf] = settingSchema(option);
  }
  return `${JSON.stringify({ $schema: DIALECT, title: `Settings of ${program}`, ...root }, null, 2)}\n`;
}
