import { create, type JsonValue, toJson } from "@bufbuild/protobuf";
import { type Holding, HoldingSchema, NodeState } from "@weightline/proto/common";
import { type Node, NodeSchema } from "@weightline/proto/node";
import { nodeStateOf } from "./node-mirror.ts";
import { holdingOf, parse } from "./redis-records.ts";

/** A node's holdings, as its record keeps them for people and for `mxctl nodes`. */
export function writeHoldings(holdings: Holding[]): string {
  return JSON.stringify(holdings.map((holding) => toJson(HoldingSchema, holding)));
}

function readHoldings(text: string | undefined): Holding[] {
  const json = parse(text);
  if (!Array.isArray(json)) {
    return [];
  }
  return json.flatMap((holding: JsonValue) => holdingOf(holding) ?? []);
}

function wholeNumber(value: unknown): bigint {
  return typeof value === "string" && /^\d{1,20}$/.test(value) ? BigInt(value) : 0n;
}

/** A node's record as `mxctl nodes` shows it; undefined for a node that is gone or whose record is none. */
export function readNode(name: string, record: Record<string, string>, redisMs: number): Node | undefined {
  const { epoch, address, expires, state, last_seen: lastSeen } = record;
  if (epoch === undefined || address === undefined || expires === undefined) {
    return undefined;
  }
  const about = parse(record["about"]) as Record<string, unknown> | undefined;
  return create(NodeSchema, {
    name,
    state: redisMs >= Number(expires) ? NodeState.LOST : nodeStateOf(state),
    epoch: wholeNumber(epoch),
    address,
    lastSeenMs: wholeNumber(lastSeen),
    holdings: readHoldings(record["holdings"]),
    version: String(about?.["version"] ?? ""),
    protection: String(about?.["protection"] ?? ""),
    ...(about?.["memory_limit"] === undefined
      ? {}
      : { memory: { limit: wholeNumber(about["memory_limit"]), used: wholeNumber(about["memory_used"]) } }),
  });
}
