/**
 * Calls of one key share a run: who asks while one is under way gets the result of the next, which begins after the ask.
 * So everybody sees what was true when he asked, and a crowd costs two runs.
 */
export function joinedCalls<T>(run: (key: string) => Promise<T>): (key: string) => Promise<T> {
  const running = new Map<string, { now: Promise<T>; next: Promise<T> | undefined }>();
  const start = (key: string): Promise<T> => {
    const entry: { now: Promise<T>; next: Promise<T> | undefined } = { now: run(key), next: undefined };
    running.set(key, entry);
    const end = () => {
      if (running.get(key) === entry) {
        running.delete(key);
      }
    };
    entry.now.then(end, end);
    return entry.now;
  };
  return (key) => {
    const entry = running.get(key);
    if (entry === undefined) {
      return start(key);
    }
    entry.next ??= entry.now.then(
      () => running.get(key)?.now ?? start(key),
      () => running.get(key)?.now ?? start(key),
    );
    return entry.next;
  };
}
