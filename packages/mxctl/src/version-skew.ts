import type { Check } from "./commands/doctor.ts";

/** A program and its version; "" where it did not tell. */
export interface ProgramVersion {
  program: string;
  version: string;
}

function releaseOf(version: string): { major: number; minor: number } | undefined {
  const match = /^(\d+)\.(\d+)/.exec(version);
  return match === null ? undefined : { major: Number(match[1]), minor: Number(match[2]) };
}

/** What it means that these run side by side: the same or the next release works, all else is on trial. */
export function versionCheck(programs: readonly ProgramVersion[]): Check {
  const shown = programs.map(({ program, version }) => `${program} ${version || "of an unknown version"}`).join(", ");
  const check = (level: Check["level"], words: string, cure = ""): Check => ({
    name: "versions",
    level,
    evidence: `${shown}: ${words}`,
    cure,
  });
  if (programs.length < 2) {
    return check("note", "there is none to compare it with");
  }
  const releases = programs.map(({ version }) => releaseOf(version));
  if (releases.some((release) => release === undefined)) {
    return check("note", "not all of them can be compared");
  }
  const known = releases.filter((release) => release !== undefined);
  const majors = known.map(({ major }) => major);
  const minors = known.map(({ minor }) => minor);
  const apart = Math.max(...minors) - Math.min(...minors);
  if (new Set(majors).size > 1 || apart > 1) {
    return check(
      "warning",
      "more than one release apart; what one of them does not know is refused in words",
      "bring them to the same release, the control plane first",
    );
  }
  return apart === 1
    ? check("note", "one release apart, which is made to work while a cluster is upgraded", "finish the upgrade")
    : check("ok", "the same release");
}
