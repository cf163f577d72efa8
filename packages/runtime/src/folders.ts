import { mkdirSync, statSync } from "node:fs";
import { dirname } from "node:path";

/**
 * Makes a folder and those above it, one by one: mkdir's own recursion never ends where the kernel calls a folder missing
 * that it will not make, as in /proc. Throws the system's error.
 */
export function makeFolders(path: string, mode = 0o755): void {
  if (statSync(path, { throwIfNoEntry: false }) !== undefined) {
    return;
  }
  makeFolders(dirname(path), mode);
  try {
    mkdirSync(path, { mode });
  } catch (error) {
    // Somebody else may have made it meanwhile.
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") {
      throw error;
    }
  }
}
