import { type Check, note, ok, warning } from "./check.ts";

export interface StoreFacts {
  path: string;
  /** Names in the store that are not ours. */
  foreign: readonly string[];
  /** Ids. */
  damaged: readonly string[];
  /** Ids of holdings whose record needs a newer agent. */
  newer: readonly string[];
  complete: number;
  filling: number;
  evicting: number;
}

const SHOWN_MAX = 5;

function list(names: readonly string[]): string {
  const more = names.length > SHOWN_MAX ? ` and ${names.length - SHOWN_MAX} more` : "";
  return `${names.slice(0, SHOWN_MAX).join(", ")}${more}`;
}

export function storeChecks(facts: StoreFacts): Check[] {
  const { path, foreign, damaged, newer } = facts;
  return [
    ok("holdings", `${facts.complete} complete, ${facts.filling} filling, ${facts.evicting} evicting`),
    damaged.length === 0
      ? ok("damage", "no holding is damaged")
      : warning(
          "damage",
          `${damaged.length} holding(s) have bytes that are not what their digest says: ${list(damaged)}; they are attached and served no more, and filled again when no lease is on them`,
          "if it comes again, test the machine's memory; mxctl evict --force lets go of one at once",
        ),
    foreign.length === 0
      ? ok("foreign-files", `nothing in ${path} is foreign`)
      : note(
          "foreign-files",
          `${foreign.length} name(s) in ${path} are not of this program and are left alone: ${list(foreign)}; their bytes are not counted against the limit`,
          "remove them by hand if nobody needs them",
        ),
    newer.length === 0
      ? ok("newer-holdings", "every holding's record can be read")
      : note(
          "newer-holdings",
          `${newer.length} holding(s) were written by a newer agent: ${list(newer)}; they are counted and left alone`,
          "upgrade this agent",
        ),
  ];
}
