import type { SourceIdentity } from "@weightline/proto/p2p";
import { nearNames } from "@weightline/runtime";

/** A held name, for people. */
export function describeIdentity(identity: SourceIdentity, rank: number): string {
  const revision = identity.revision === "" ? "no revision" : `revision ${identity.revision}`;
  return `${identity.modelName} (${revision}, rank ${rank})`;
}

/** At most five held names like `modelName`: the same name first, then names that contain it, then near spellings. */
export function namesNear(
  modelName: string,
  held: ReadonlyArray<{ identity: SourceIdentity; rank: number }>,
): string[] {
  const wanted = modelName.toLowerCase();
  const names = [...new Set(held.map(({ identity }) => identity.modelName))];
  const spelled = new Set(nearNames(modelName, names));
  const score = (name: string) => {
    const lower = name.toLowerCase();
    return lower === wanted
      ? 0
      : wanted !== "" && (lower.includes(wanted) || wanted.includes(lower))
        ? 1
        : spelled.has(name)
          ? 2
          : 3;
  };
  const described = held
    .filter(({ identity }) => score(identity.modelName) < 3)
    .sort((a, b) => score(a.identity.modelName) - score(b.identity.modelName));
  return [...new Set(described.map(({ identity, rank }) => describeIdentity(identity, rank)))].slice(0, 5);
}
