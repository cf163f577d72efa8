/** Lets those who ask at once go on by turns, so that one who asks often does not keep others waiting. */
export interface Turns<Key> {
  /** Settles when it is the key's turn: at once for the first in a turn of the event loop, the others follow one each. */
  wait(key: Key): Promise<void>;
}

export function createTurns<Key>(): Turns<Key> {
  const waiting = new Map<Key, Array<() => void>>();
  /** Keys that went on in this turn of the event loop. */
  const served = new Set<Key>();
  let scheduled = false;

  const next = () => {
    scheduled = false;
    served.clear();
    for (const [key, queue] of [...waiting]) {
      served.add(key);
      queue.shift()?.();
      if (queue.length === 0) {
        waiting.delete(key);
      }
    }
    if (served.size > 0) {
      schedule();
    }
  };

  const schedule = () => {
    if (!scheduled) {
      scheduled = true;
      setImmediate(next);
    }
  };

  return {
    wait(key) {
      schedule();
      if (!served.has(key)) {
        served.add(key);
        return Promise.resolve();
      }
      return new Promise((resolve) => {
        const queue = waiting.get(key);
        if (queue === undefined) {
          waiting.set(key, [resolve]);
        } else {
          queue.push(resolve);
        }
      });
    },
  };
}
