import { createHash } from "node:crypto";
import { identityFromJson, identityToJson } from "@weightline/proto";
import type { SourceIdentity } from "@weightline/proto/p2p";
import type { SourceFile } from "@weightline/rdma-native";
import { WeightlineError } from "@weightline/runtime";
import { HOLDING_STATES, type HoldingStateName } from "../holdings/holding-state.ts";

import { readFileAtOnce, writeWholeJson } from "./whole-file.ts";

/** Version of record.json that this agent writes, and the oldest agent that may read what it writes. */
export const RECORD_FORMAT = 1;
export const RECORD_MIN_READER = 1;
const RECORD_NAME = "record.json";
const RECORD_MAX_BYTES = 4 * 1024 * 1024;

/** What fills a holding (objects.md, "The store"). */
export type HoldingSource =
  | { kind: "load"; path: string; files: SourceFile[] }
  /** `expected`: hex of the object digest that the transfer must end with; "" when the origin was still filling. */
  | { kind: "transfer"; node: string; expected: string }
  | { kind: "offer" };

/** A name under which a holding can be asked for. */
export interface NamedIdentity {
  identity: SourceIdentity;
  rank: number;
}

/** What is durably known of a holding beside its bytes. */
export interface HoldingRecord {
  identities: NamedIdentity[];
  state: HoldingStateName;
  source: HoldingSource;
  /** Holding id of the origin: this one's own for a load. */
  origin: string;
  /** Hex of SHA-256. */
  layoutDigest: string;
  /** Hex of SHA-256; "" until complete. */
  objectDigest: string;
  createdMs: number;
}

/** A record that only a newer agent may touch. */
export class NewerRecordError extends WeightlineError {
  constructor(folder: string, minReader: number) {
    super(
      "Refused",
      `${folder} was written by a newer agent: its records need version ${minReader}, this agent reads ${RECORD_FORMAT}`,
      {
        field: "min_reader",
        value: String(minReader),
        limit: String(RECORD_FORMAT),
        wayOut: "upgrade the agent, or evict it with the newer one",
      },
    );
  }
}

function sourceToJson(source: HoldingSource): unknown {
  if (source.kind !== "load") {
    return source;
  }
  const files = source.files.map(({ path, source: from, bytes, mtimeNs, inode, device }) => ({
    path,
    source: from,
    bytes: String(bytes),
    mtime_ns: String(mtimeNs),
    inode: String(inode),
    device: String(device),
  }));
  return { kind: "load", path: source.path, files };
}

/**
 * SHA-256 over a record's JSON without its own `digest`: a flipped bit must not give a holding another model's name. Spaces
 * do not count, unknown members do.
 */
function digestOfRecord(json: object): string {
  const { digest: _, ...rest } = json as Record<string, unknown>;
  return createHash("sha256").update(JSON.stringify(rest)).digest("hex");
}

/** Writes <folder>/record.json whole or not at all. */
export async function writeRecord(folder: string, record: HoldingRecord): Promise<void> {
  const json = {
    format: RECORD_FORMAT,
    min_reader: RECORD_MIN_READER,
    identities: record.identities.map(({ identity, rank }) => ({ identity: identityToJson(identity), rank })),
    state: record.state,
    source: sourceToJson(record.source),
    origin: record.origin,
    layout_digest: record.layoutDigest,
    object_digest: record.objectDigest,
    created_ms: record.createdMs,
  };
  const path = `${folder}/${RECORD_NAME}`;
  const text = JSON.stringify({ ...json, digest: digestOfRecord(json) }, undefined, 1);
  await writeWholeJson(path, `${text}\n`);
}

const HOLDING_ID = /^[0-9a-f]{32}$/;
const DIGEST = /^[0-9a-f]{64}$/;
const RANK_MAX = 2 ** 32 - 1;
const DECIMAL = /^-?\d{1,20}$/;

/** Checks one field after another, so that a damaged record names what is wrong with it. */
class Fields {
  readonly #json: Record<string, unknown>;
  readonly #where: string;

  constructor(json: unknown, where: string) {
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      throw new WeightlineError("Corrupt", `${where} is not a JSON object`, { field: where });
    }
    this.#json = json as Record<string, unknown>;
    this.#where = where;
  }

  fail(name: string): never {
    const value = this.#json[name];
    throw new WeightlineError("Corrupt", `${this.#where}: ${name} is not valid`, {
      field: name,
      // Not String(): an object of the file's may have a toString of its own.
      value: (typeof value === "string" ? value : (JSON.stringify(value) ?? "")).slice(0, 100),
    });
  }

  text(name: string, form?: RegExp): string {
    const value = this.#json[name];
    return typeof value === "string" && (form === undefined || form.test(value)) ? value : this.fail(name);
  }

  integer(name: string, most = Number.MAX_SAFE_INTEGER): number {
    const value = this.#json[name];
    const fits = typeof value === "number" && Number.isSafeInteger(value) && value >= 0 && value <= most;
    return fits ? value : this.fail(name);
  }

  /** A whole number of 64 bits, in digits: no other fits into the mover's. */
  bits64(name: string, signed = false): bigint {
    const value = BigInt(this.text(name, DECIMAL));
    const fits = (signed ? BigInt.asIntN(64, value) : BigInt.asUintN(64, value)) === value;
    return fits ? value : this.fail(name);
  }

  list(name: string): unknown[] {
    const value = this.#json[name];
    return Array.isArray(value) ? value : this.fail(name);
  }

  inner(name: string): Fields {
    return new Fields(this.#json[name], `${this.#where}: ${name}`);
  }

  raw(name: string): unknown {
    return this.#json[name];
  }
}

function sourceFromJson(fields: Fields): HoldingSource {
  const kind = fields.text("kind");
  if (kind === "offer") {
    return { kind };
  }
  if (kind === "transfer") {
    return { kind, node: fields.text("node"), expected: fields.text("expected", /^([0-9a-f]{64})?$/) };
  }
  if (kind !== "load") {
    fields.fail("kind");
  }
  const files = fields.list("files").map((entry, i) => {
    const file = new Fields(entry, `source.files[${i}]`);
    return {
      path: file.text("path"),
      source: file.text("source"),
      bytes: file.bits64("bytes"),
      mtimeNs: file.bits64("mtime_ns", true),
      inode: file.bits64("inode"),
      device: file.bits64("device"),
    };
  });
  return { kind, path: fields.text("path"), files };
}

function parseRecord(text: string, folder: string): HoldingRecord {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new WeightlineError("Corrupt", `${folder}/${RECORD_NAME} is not JSON`, { field: RECORD_NAME, cause });
  }
  const fields = new Fields(json, `${folder}/${RECORD_NAME}`);
  const minReader = fields.integer("min_reader");
  if (minReader > RECORD_FORMAT) {
    throw new NewerRecordError(folder, minReader);
  }
  const identities = fields.list("identities").map((entry, i) => {
    const named = new Fields(entry, `identities[${i}]`);
    const identity = identityFromJson(named.raw("identity"));
    return { identity: identity ?? named.fail("identity"), rank: named.integer("rank", RANK_MAX) };
  });
  const state = HOLDING_STATES.find((candidate) => candidate === fields.raw("state"));
  const record: HoldingRecord = {
    identities,
    state: state ?? fields.fail("state"),
    source: sourceFromJson(fields.inner("source")),
    origin: fields.text("origin", HOLDING_ID),
    layoutDigest: fields.text("layout_digest", DIGEST),
    objectDigest: fields.text("object_digest", /^([0-9a-f]{64})?$/),
    createdMs: fields.integer("created_ms"),
  };
  // Absent in a record that was written before records had it.
  if (fields.raw("digest") !== undefined && fields.text("digest", DIGEST) !== digestOfRecord(json as object)) {
    fields.fail("digest");
  }
  return record;
}

/** Reads it, at once; undefined when there is none. Throws Corrupt naming the field, or NewerRecordError. */
export function readRecord(folder: string): HoldingRecord | undefined {
  let bytes: Buffer;
  try {
    bytes = readFileAtOnce(`${folder}/${RECORD_NAME}`, RECORD_MAX_BYTES);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") {
      return undefined;
    }
    throw error;
  }
  return parseRecord(bytes.toString("utf8"), folder);
}
