import { randomFillSync } from "node:crypto";
import { closeSync, fsyncSync, mkdirSync, openSync, writeSync } from "node:fs";

const PIECE_BYTES = 64 << 20;

/** Writes a safetensors file of `bytes` random bytes in `count` tensors. */
export function writeLargeModel(folder: string, bytes: number, count = 64): string {
  mkdirSync(folder, { recursive: true });
  const path = `${folder}/model.safetensors`;
  const each = Math.floor(bytes / count);
  const tensors = Array.from(
    { length: count },
    (_, i) => `"layer.${i}.weight":{"dtype":"U8","shape":[${each}],"data_offsets":[${i * each},${(i + 1) * each}]}`,
  );
  const header = Buffer.from(`{${tensors.join(",")}}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const file = openSync(path, "w");
  writeSync(file, Buffer.concat([length, header]));
  const piece = randomFillSync(Buffer.alloc(PIECE_BYTES));
  for (let left = each * count; left > 0; left -= PIECE_BYTES) {
    // Pieces must differ, or equal chunks would hide a mistake.
    piece.writeUInt32LE(left >>> 0, 0);
    writeSync(file, piece, 0, Math.min(left, PIECE_BYTES));
  }
  // Writing dirty pages back later would disturb what is measured.
  fsyncSync(file);
  closeSync(file);
  return path;
}
