/** Runs work, some at a time, the others in the order in which they came. A piece that fails makes room as one that ends. */
export type Admission = <T>(work: () => Promise<T>) => Promise<T>;

export function createAdmission(maxCount: number): Admission {
  const waiting: Array<() => void> = [];
  let runningCount = 0;
  return async (work) => {
    if (runningCount < maxCount) {
      runningCount += 1;
    } else {
      await new Promise<void>((resolve) => waiting.push(resolve));
    }
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next === undefined) {
        runningCount -= 1;
      } else {
        next();
      }
    }
  };
}
