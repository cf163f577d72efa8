import { readFileSync } from "node:fs";
import { type ErrorCode, parseDocument, type YAMLError } from "yaml";
import { WeightlineError } from "../error.ts";

/**
 * What is wrong, by the parser's code. Its own messages quote the file, which may hold a secret; these never do.
 */
const FAULTS: Readonly<Record<ErrorCode, string>> = {
  ALIAS_PROPS: "an alias has an anchor or tag",
  BAD_ALIAS: "an alias names no anchor before it",
  BAD_COLLECTION_TYPE: "a tag does not fit what follows it",
  BAD_DIRECTIVE: "a line that begins with % is no directive",
  BAD_DQ_ESCAPE: "an escape in double quotes is not known",
  BAD_INDENT: "the indentation does not fit",
  BAD_PROP_ORDER: "an anchor or tag stands at the wrong place",
  BAD_SCALAR_START: "a plain text begins with a character that must be quoted",
  BLOCK_AS_IMPLICIT_KEY: "a key is followed by more than one value on its line, or a text with a colon is not quoted",
  BLOCK_IN_FLOW: "a block stands within brackets",
  DUPLICATE_KEY: "a key stands there twice",
  IMPOSSIBLE: "it is not YAML",
  KEY_OVER_1024_CHARS: "a key is longer than 1024 characters",
  MISSING_CHAR: "a quote, bracket, comma or colon is missing",
  MULTILINE_IMPLICIT_KEY: "a key goes over more than one line, or a colon is missing",
  MULTIPLE_ANCHORS: "a value has two anchors",
  MULTIPLE_DOCS: "the file has more than one document",
  MULTIPLE_TAGS: "a value has two tags",
  NON_STRING_KEY: "a key is no text",
  RESOURCE_EXHAUSTION: "it nests too deeply",
  TAB_AS_INDENT: "a tab is used to indent",
  TAG_RESOLVE_FAILED: "a tag is not known, or does not fit its value",
  UNEXPECTED_TOKEN: "something stands where it does not belong",
};

const READ_FAULTS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  EACCES: "this user may not read it",
  EISDIR: "it is a folder",
};

function refuse(field: string, path: string, why: string, wayOut: string): WeightlineError {
  return new WeightlineError("InvalidArgument", `${field} ${path} ${why}`, { field, value: path, wayOut });
}

function faultOf(error: YAMLError): string {
  const [start] = error.linePos ?? [];
  const place = start === undefined ? "" : ` at line ${start.line}, column ${start.col}`;
  return `cannot be read${place}: ${FAULTS[error.code] ?? FAULTS.IMPOSSIBLE}`;
}

/**
 * The mapping in a YAML file; empty for an empty file. `field` is what named the file, for errors: InvalidArgument with file,
 * line, column and what is wrong, never the file's text and no cause, which would quote it.
 */
export function readYamlFile(path: string, field: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    const { code = "", message } = cause as NodeJS.ErrnoException;
    throw refuse(
      field,
      path,
      `cannot be read: ${READ_FAULTS[code] ?? message}`,
      "give a YAML file that this user may read",
    );
  }
  // What the parser would only warn of changes what a value is: a tag that is not known is a mistake too.
  const document = parseDocument(text, { logLevel: "error", prettyErrors: true, stringKeys: true });
  const [error] = [...document.errors, ...document.warnings];
  if (error !== undefined) {
    throw refuse(field, path, faultOf(error), "mend that line, or check the file with a YAML linter");
  }
  let root: unknown;
  try {
    root = document.toJS();
  } catch {
    // Aliases are resolved only now; the parser's words would name them, and it gives no place.
    throw refuse(field, path, "cannot be read: an alias names no anchor, or aliases multiply", "write the values out");
  }
  if (root === null || root === undefined) {
    return {};
  }
  if (typeof root !== "object" || Array.isArray(root)) {
    throw refuse(field, path, "is not a mapping of settings", "write lines like `name: value`");
  }
  return root as Record<string, unknown>;
}
