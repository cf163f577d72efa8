import { createHash } from "node:crypto";
import { closeSync, fstatSync, readSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { setImmediate as nextTurn } from "node:timers/promises";
import { WeightlineError } from "@weightline/runtime";
import { openAtOnce } from "./store/whole-file.ts";

/** What the header of a layout says (objects.md, "Layout format"). */
export interface LayoutHeader {
  kind: string;
  algorithm: string;
  chunkBytes: number;
  itemCount: number;
  segments: Array<{ bytes: number; path: string }>;
  totalBytes: number;
  layoutBytes: number;
  /** Hex of the SHA-256 of the whole layout. */
  digest: string;
}

/** A tensor's row. */
export interface LayoutItem {
  name: string;
  dtype: string;
  segment: number;
  offset: bigint;
  bytes: bigint;
}

const MAGIC = "WLLAYOUT";
const PREAMBLE_BYTES = 16;
const VERSION = 1;
/** One read: a layout may have a hundred megabytes, and the event loop has others to serve. */
const READ_BYTES = 1 << 20;

interface RawHeader {
  kind: string;
  algorithm: string;
  chunk_bytes: number;
  items: number;
  dims: number;
  dtypes: string[];
  segments: Array<{ bytes: number; path?: string }>;
}

function corrupt(what: string): WeightlineError {
  return new WeightlineError("Corrupt", `the layout is not valid: ${what}`, { field: "layout" });
}

function headerBytesOf(bytes: Buffer): number {
  if (bytes.length < PREAMBLE_BYTES || bytes.toString("latin1", 0, 8) !== MAGIC) {
    throw corrupt(`it does not begin with ${MAGIC}`);
  }
  const version = bytes.readUInt32LE(8);
  if (version !== VERSION) {
    throw new WeightlineError(
      "Refused",
      `layout version ${version} is not known; this agent reads version ${VERSION}`,
      {
        field: "layout.version",
        value: String(version),
        limit: String(VERSION),
        wayOut: "upgrade the older agent",
      },
    );
  }
  return bytes.readUInt32LE(12);
}

function parse(bytes: Buffer): { raw: RawHeader; columnsAt: number } {
  const columnsAt = PREAMBLE_BYTES + headerBytesOf(bytes);
  if (columnsAt > bytes.length) {
    throw corrupt("its header is cut off");
  }
  try {
    return { raw: JSON.parse(bytes.toString("utf8", PREAMBLE_BYTES, columnsAt)), columnsAt };
  } catch {
    throw corrupt("its header is not JSON");
  }
}

/** The paths of a holding's segments below its folder: the model's own names, or 0000, 0001, ... for tensors. */
export function segmentPaths(header: LayoutHeader): string[] {
  return header.segments.map(({ path }, i) => `files/${path === "" ? String(i).padStart(4, "0") : path}`);
}

/**
 * Reads <folder>/layout's header. The mover has checked the whole of it when it was written: whoever finds a layout again
 * compares `digest` with the record's before it believes a number. Refused: a version that is not known here.
 */
export async function readLayoutHeader(folder: string): Promise<LayoutHeader> {
  const file = openAtOnce(`${folder}/layout`);
  try {
    const hash = createHash("sha256");
    const buffer = Buffer.allocUnsafe(Math.max(1, Math.min(READ_BYTES, fstatSync(file).size)));
    const pieces: Buffer[] = [];
    let wanted = PREAMBLE_BYTES;
    let size = 0;
    for (
      let n = readSync(file, buffer, 0, buffer.length, 0);
      n > 0;
      n = readSync(file, buffer, 0, buffer.length, size)
    ) {
      const piece = buffer.subarray(0, n);
      hash.update(piece);
      if (size < wanted) {
        pieces.push(Buffer.from(piece));
        wanted = PREAMBLE_BYTES + headerBytesOf(Buffer.concat(pieces));
      }
      size += n;
      if (n === READ_BYTES) {
        await nextTurn();
      }
    }
    const { raw } = parse(Buffer.concat(pieces));
    return {
      kind: raw.kind,
      algorithm: raw.algorithm,
      chunkBytes: raw.chunk_bytes,
      itemCount: raw.items,
      segments: raw.segments.map((segment) => ({ bytes: segment.bytes, path: segment.path ?? "" })),
      totalBytes: raw.segments.reduce((sum, segment) => sum + segment.bytes, 0),
      layoutBytes: size,
      digest: hash.digest("hex"),
    };
  } finally {
    closeSync(file);
  }
}

function padded(bytes: number): number {
  return Math.ceil(bytes / 8) * 8;
}

/** Every row of <folder>/layout. For manifests towards stock clients, which are small. */
export async function readLayoutItems(folder: string): Promise<LayoutItem[]> {
  const bytes = await readFile(`${folder}/layout`);
  const { raw, columnsAt } = parse(bytes);
  const n = raw.items;
  const widths = [8 * n, 8 * n, 8 * raw.dims, 4 * n, 4 * n, 4 * n, n, n];
  const starts: number[] = [];
  let at = columnsAt;
  for (const width of widths) {
    starts.push(at);
    at += padded(width);
  }
  const [offsets = 0, sizes = 0, , ends = 0, segments = 0, , dtypes = 0] = starts;
  const names = at;
  const items: LayoutItem[] = [];
  let from = 0;
  for (let i = 0; i < n; i++) {
    const end = bytes.readUInt32LE(ends + 4 * i);
    items.push({
      name: bytes.toString("utf8", names + from, names + end),
      dtype: raw.dtypes[bytes.readUInt8(dtypes + i)] ?? "",
      segment: bytes.readUInt32LE(segments + 4 * i),
      offset: bytes.readBigUInt64LE(offsets + 8 * i),
      bytes: bytes.readBigUInt64LE(sizes + 8 * i),
    });
    from = end;
  }
  return items;
}
