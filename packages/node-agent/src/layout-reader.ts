import { open, readFile } from "node:fs/promises";
import { WeightlineError } from "@weightline/runtime";

/** What the header of a layout says (objects.md, "Layout format"). */
export interface LayoutHeader {
  kind: string;
  algorithm: string;
  chunkBytes: number;
  itemCount: number;
  segments: Array<{ bytes: number; path: string }>;
  totalBytes: number;
  layoutBytes: number;
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
  if (bytes.length < PREAMBLE_BYTES || bytes.toString("latin1", 0, 8) !== MAGIC || bytes.readUInt32LE(8) !== VERSION) {
    throw corrupt(`it does not begin with ${MAGIC} and version ${VERSION}`);
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

/** Reads <folder>/layout's header alone. The mover has checked the whole of it when it was written. */
export async function readLayoutHeader(folder: string): Promise<LayoutHeader> {
  const file = await open(`${folder}/layout`);
  try {
    const { size } = await file.stat();
    const preamble = Buffer.alloc(Math.min(size, PREAMBLE_BYTES));
    await file.read(preamble, 0, preamble.length, 0);
    const head = Buffer.alloc(Math.min(size, PREAMBLE_BYTES + headerBytesOf(preamble)));
    await file.read(head, 0, head.length, 0);
    const { raw } = parse(head);
    return {
      kind: raw.kind,
      algorithm: raw.algorithm,
      chunkBytes: raw.chunk_bytes,
      itemCount: raw.items,
      segments: raw.segments.map((segment) => ({ bytes: segment.bytes, path: segment.path ?? "" })),
      totalBytes: raw.segments.reduce((sum, segment) => sum + segment.bytes, 0),
      layoutBytes: size,
    };
  } finally {
    await file.close();
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
