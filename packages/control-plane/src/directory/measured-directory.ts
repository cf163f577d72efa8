import type { Directory } from "./directory.ts";

/** The same directory, with each call's time told to `observe`. */
export function measuredDirectory(
  directory: Directory,
  observe: (operation: string, seconds: number) => void,
): Directory {
  return new Proxy(directory, {
    get(target, name) {
      const member: unknown = Reflect.get(target, name);
      if (typeof member !== "function" || name === "close") {
        return member;
      }
      return async (...parameters: unknown[]) => {
        const start = performance.now();
        try {
          return await (member as (...all: unknown[]) => Promise<unknown>).apply(target, parameters);
        } finally {
          observe(String(name), (performance.now() - start) / 1000);
        }
      };
    },
  });
}
