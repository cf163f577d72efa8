import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";

/** A tensor to be written; bytes are random unless given. */
export interface TensorSpec {
  dtype: string;
  shape: readonly number[];
  data?: Buffer;
}

const BITS: Readonly<Record<string, number>> = {
  U8: 8,
  I8: 8,
  BOOL: 8,
  F4: 4,
  F8_E4M3: 8,
  F8_E5M2: 8,
  F8_E8M0: 8,
  F16: 16,
  BF16: 16,
  F32: 32,
  I64: 64,
  F64: 64,
};

/** A whole file from a header and its data; `headerText` may be any text. */
export function safetensorsBytes(headerText: string, data: Buffer): Buffer {
  const header = Buffer.from(headerText);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, data]);
}

/** Writes a safetensors file, tensors one after another in the given order; gives its bytes. */
export function writeTensors(
  path: string,
  tensors: Readonly<Record<string, TensorSpec>>,
  options: { metadata?: Record<string, string> | null; headerBytes?: number } = {},
): Buffer {
  const header: Record<string, unknown> = {};
  if (options.metadata !== undefined) {
    header["__metadata__"] = options.metadata;
  }
  const parts: Buffer[] = [];
  const members = Object.entries(header).map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`);
  let at = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    const bytes = data ?? randomBytes((shape.reduce((product, dim) => product * dim, 1) * (BITS[dtype] ?? 8)) / 8);
    members.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [at, at + bytes.length] })}`);
    parts.push(bytes);
    at += bytes.length;
  }
  const text = `{${members.join(",")}}`;
  const whole = safetensorsBytes(text.padEnd(options.headerBytes ?? text.length), Buffer.concat(parts));
  writeFileSync(path, whole);
  return whole;
}
