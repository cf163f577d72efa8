// The parts of docs/ that the programs' options make. `node test/repository/generated-documents.ts` writes them anew.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { CONTROL_PLANE_OPTIONS } from "@weightline/control-plane";
import { AGENT_OPTIONS } from "@weightline/node-agent";
import { referenceRows, schemaText } from "@weightline/runtime";
import { ROOT } from "../support/program.ts";

/** `text` with the table below a heading replaced by `rows`. */
function withTable(text: string, heading: string, rows: readonly string[]): string {
  const lines = text.split("\n");
  const start = lines.findIndex((line, i) => i > lines.indexOf(heading) && line.startsWith("|"));
  const length = lines.slice(start).findIndex((line) => !line.startsWith("|"));
  if (!lines.includes(heading) || start < 0) {
    throw new Error(`no table below "${heading}"`);
  }
  lines.splice(start, length < 0 ? lines.length : length, ...rows);
  return lines.join("\n");
}

/** File, from the root -> what it should be. */
export function generatedDocuments(): Map<string, string> {
  const reference = "docs/configuration.md";
  const text = readFileSync(`${ROOT}${reference}`, "utf8");
  const agent = withTable(text, "## Node agent", referenceRows(AGENT_OPTIONS));
  return new Map([
    [reference, withTable(agent, "## Control plane", referenceRows(CONTROL_PLANE_OPTIONS))],
    ["docs/schema/control-plane.schema.json", schemaText("weightline-control-plane", CONTROL_PLANE_OPTIONS)],
    ["docs/schema/node-agent.schema.json", schemaText("weightline-node-agent", AGENT_OPTIONS)],
  ]);
}

if (import.meta.main) {
  for (const [file, text] of generatedDocuments()) {
    mkdirSync(dirname(`${ROOT}${file}`), { recursive: true });
    writeFileSync(`${ROOT}${file}`, text);
  }
}
