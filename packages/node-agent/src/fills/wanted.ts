import { computeSourceId } from "@weightline/proto";
import type { NamedIdentity } from "../store/holding-record.ts";

/** What somebody asks for: a name that is complete enough to be looked up. */
export interface Wanted {
  sourceId: string;
  rank: number;
  /** Unknown when only the source id was given. */
  named: NamedIdentity | undefined;
  /** For people. */
  label: string;
  modelName: string;
}

export function wantedFrom(named: NamedIdentity): Wanted {
  const { modelName, revision } = named.identity;
  return {
    sourceId: computeSourceId(named.identity),
    rank: named.rank,
    named,
    modelName,
    label: `${modelName}${revision === "" ? "" : ` at revision ${revision}`}, rank ${named.rank}`,
  };
}
