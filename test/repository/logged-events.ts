import { readdirSync, readFileSync } from "node:fs";
import { ROOT } from "../support/program.ts";

/** The text from `start`, a brace, to its partner. */
function balanced(text: string, start: number): string {
  let depth = 0;
  for (let i = start; i < text.length; i++) {
    depth += text[i] === "{" ? 1 : text[i] === "}" ? -1 : 0;
    if (depth === 0) {
      return text.slice(start + 1, i);
    }
  }
  throw new Error("a brace without its partner");
}

/** Names of an object literal's fields, those of spread objects too. */
function fieldsOf(literal: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let part = "";
  for (const character of literal) {
    depth += "{([".includes(character) ? 1 : "})]".includes(character) ? -1 : 0;
    if (character === "," && depth === 0) {
      parts.push(part);
      part = "";
    } else {
      part += character;
    }
  }
  return [...parts, part]
    .map((text) => text.trim())
    .filter((text) => text !== "")
    .flatMap((text) =>
      text.startsWith("...")
        ? [...text.matchAll(/\{\s*(\w+):/g)].map(([, name = ""]) => name)
        : [/^\w+/.exec(text)?.[0] ?? ""],
    );
}

/** Every event that the daemons log, with the fields of all places that log it, read from their sources. */
export function loggedEvents(): Map<string, Set<string>> {
  const events = new Map<string, Set<string>>();
  for (const name of ["runtime", "control-plane", "node-agent"]) {
    const folder = `${ROOT}packages/${name}/src`;
    for (const entry of readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((file) =>
      file.endsWith(".ts"),
    )) {
      const text = readFileSync(`${folder}/${entry}`, "utf8");
      for (const match of text.matchAll(/\{\s*event: "([a-z-]+)"/g)) {
        const fields = events.get(match[1] ?? "") ?? new Set();
        events.set(match[1] ?? "", fields);
        for (const field of fieldsOf(balanced(text, match.index))) {
          fields.add(field);
        }
        fields.delete("event");
      }
    }
  }
  return events;
}
