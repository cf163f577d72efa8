/** How a thing is: `note` works and one should know, `warning` works worse, `error` does not work. */
export type CheckLevel = "ok" | "note" | "warning" | "error";

/** One thing that doctor looked at; Check of local.proto without its type name. */
export interface Check {
  /** Stable. */
  name: string;
  level: CheckLevel;
  /** What was found, a sentence. */
  evidence: string;
  /** What the reader can do; "" when nothing is to be done. */
  cure: string;
}

export function ok(name: string, evidence: string): Check {
  return { name, level: "ok", evidence, cure: "" };
}

export function note(name: string, evidence: string, cure = ""): Check {
  return { name, level: "note", evidence, cure };
}

export function warning(name: string, evidence: string, cure: string): Check {
  return { name, level: "warning", evidence, cure };
}

export function error(name: string, evidence: string, cure: string): Check {
  return { name, level: "error", evidence, cure };
}
