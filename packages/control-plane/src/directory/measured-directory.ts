import type { Directory } from "./directory.ts";

type Method = (...parameters: unknown[]) => Promise<unknown>;

/** The same directory, with each call's time told to `observe`. */
export function measuredDirectory(
  directory: Directory,
  observe: (operation: string, seconds: number) => void,
): Directory {
  const measured: Record<string, unknown> = { ...directory };
  for (const [name, member] of Object.entries(directory)) {
    if (typeof member === "function" && name !== "close" && name !== "ready") {
      measured[name] = async (...parameters: unknown[]) => {
        const start = performance.now();
        try {
          return await (member as Method)(...parameters);
        } finally {
          observe(name, (performance.now() - start) / 1000);
        }
      };
    }
  }
  return measured as unknown as Directory;
}
