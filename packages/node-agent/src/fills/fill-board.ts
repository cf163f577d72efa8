/** How far a fill is; FillProgress of common.proto without its type name. */
export interface Progress {
  state: string;
  verifiedBytes: bigint;
  totalBytes: bigint;
  bytesPerS: number;
  parent: string;
  networkBytes: bigint;
}

/** A fill that runs, whoever waits for it. */
export interface RunningFill<Result> {
  readonly done: Promise<Result>;
  readonly progress: Progress;
  /** Called with each change of progress; returns what ends it. */
  watch(listener: (progress: Progress) => void): () => void;
  cancel(): Promise<void>;
  /**
   * Counts one who waits; the returned function, which may be called again, ends that. When the last of them has left, the
   * fill is cancelled. One that nobody ever joined goes on by itself.
   */
  join(): () => void;
}

/** The node's running fills: one per name, so that all who want the same wait for the same. */
export interface FillBoard<Result> {
  find(key: string): RunningFill<Result> | undefined;
  /** Starts one, or gives the running one of that key; one that was cancelled is waited for, then started anew. */
  start(
    key: string,
    work: (report: (progress: Partial<Progress>) => void, signal: AbortSignal) => Promise<Result>,
  ): RunningFill<Result>;
  cancelAll(): Promise<void>;
}

export function createFillBoard<Result>(): FillBoard<Result> {
  const fills = new Map<string, RunningFill<Result>>();
  const cancelled = new WeakSet<RunningFill<Result>>();
  return {
    find: (key) => fills.get(key),
    start(key, work) {
      const known = fills.get(key);
      if (known !== undefined && !cancelled.has(known)) {
        return known;
      }
      const cancel = new AbortController();
      let waiting = 0;
      const listeners = new Set<(progress: Progress) => void>();
      const progress: Progress = {
        state: "finding",
        verifiedBytes: 0n,
        totalBytes: 0n,
        bytesPerS: 0,
        parent: "",
        networkBytes: 0n,
      };
      const report = (change: Partial<Progress>) => {
        Object.assign(progress, change);
        for (const listener of listeners) {
          listener(progress);
        }
      };
      const begin = () => work(report, cancel.signal);
      const done = (known === undefined ? begin() : known.done.then(begin, begin)).finally(
        () => fills.get(key) === fill && fills.delete(key),
      );
      // Somebody may be waiting, or nobody: a failure is the waiters' affair.
      done.catch(() => undefined);
      const fill: RunningFill<Result> = {
        done,
        progress,
        watch(listener) {
          listeners.add(listener);
          return () => listeners.delete(listener);
        },
        async cancel() {
          cancelled.add(fill);
          cancel.abort();
          await done.catch(() => undefined);
        },
        join() {
          let joined = true;
          waiting += 1;
          return () => {
            waiting -= joined ? 1 : 0;
            if (joined && waiting === 0) {
              void fill.cancel();
            }
            joined = false;
          };
        },
      };
      fills.set(key, fill);
      return fill;
    },
    async cancelAll() {
      await Promise.all([...fills.values()].map((fill) => fill.cancel()));
    },
  };
}
