import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { open, rename, rm, writeFile } from "node:fs/promises";

/** Memory that a file of the store has at least, once it has any. */
const PAGE_BYTES = 4096;

/**
 * Writes a small JSON file whole or not at all: beside it, then renamed. A tmpfs without a free page has no room for a second
 * file; then the old one's own page is written over in one call, which a kill does not cut in two. Throws what the system
 * says, and leaves nothing half-written.
 */
export async function writeWholeJson(path: string, text: string): Promise<void> {
  try {
    await writeFile(`${path}.new`, text);
    await rename(`${path}.new`, path);
  } catch (error) {
    await rm(`${path}.new`, { force: true }).catch(() => undefined);
    if ((error as NodeJS.ErrnoException).code !== "ENOSPC" || !(await writeOver(path, text))) {
      throw error;
    }
  }
}

/** False when there is no old file, or when one of them is longer than a page. */
async function writeOver(path: string, text: string): Promise<boolean> {
  const file = await open(path, "r+").catch(() => undefined);
  if (file === undefined) {
    return false;
  }
  try {
    const { size } = await file.stat();
    // Spaces behind JSON mean nothing: what was longer before is covered, too.
    const bytes = Buffer.from(
      text
        .trimEnd()
        .padEnd(size - 1)
        .concat("\n"),
    );
    if (size === 0 || size > PAGE_BYTES || bytes.length > PAGE_BYTES) {
      return false;
    }
    await file.write(bytes, 0, bytes.length, 0);
    return true;
  } finally {
    await file.close();
  }
}

/**
 * Opens a file of the store to be read; its caller closes it. What is no file of ours (a pipe, a link) neither holds the event
 * loop nor leads out of the store.
 */
export function openAtOnce(path: string): number {
  return openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
}

/**
 * The first `most` bytes of a small file of the store, without waiting: its pages lie in memory, and a thousand reads by the
 * thread pool cost a start most of a second. Throws what the system says; ENOENT when there is none.
 */
export function readFileAtOnce(path: string, most: number): Buffer {
  const file = openAtOnce(path);
  try {
    const bytes = Buffer.allocUnsafe(Math.min(most, fstatSync(file).size));
    return bytes.subarray(0, readSync(file, bytes, 0, bytes.length, 0));
  } finally {
    closeSync(file);
  }
}
