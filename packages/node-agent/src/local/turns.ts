/** Lets those who ask at once go on by turns, so that one who asks often does not keep others waiting. */
export interface Turns<Key> {
  /**
   * Calls back when it is the key's turn: at once for the first in a turn of the event loop, the others follow one each. One
   * that was left (its signal is aborted) when its turn comes is passed over.
   */
  wait(key: Key, left: AbortSignal, go: () => void): void;
}

interface Waiting {
  left: AbortSignal;
  go: () => void;
}

export function createTurns<Key>(): Turns<Key> {
  const waiting = new Map<Key, Waiting[]>();
  /** Keys that went on in this turn of the event loop. */
  const served = new Set<Key>();
  let scheduled = false;

  const next = () => {
    scheduled = false;
    served.clear();
    for (const [key, queue] of [...waiting]) {
      const at = queue.findIndex(({ left }) => !left.aborted);
      const [next] = at < 0 ? [] : queue.splice(0, at + 1).slice(-1);
      if (at < 0 || queue.length === 0) {
        waiting.delete(key);
      }
      if (next !== undefined) {
        served.add(key);
        next.go();
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
    wait(key, left, go) {
      schedule();
      if (!served.has(key)) {
        served.add(key);
        go();
        return;
      }
      const queue = waiting.get(key);
      if (queue === undefined) {
        waiting.set(key, [{ left, go }]);
      } else {
        queue.push({ left, go });
      }
    },
  };
}
