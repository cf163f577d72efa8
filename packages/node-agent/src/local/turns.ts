import type { LoopRation } from "@weightline/runtime";

/** Lets those who ask at once go on by turns, so that one who asks often does not keep others waiting. */
export interface Turns<Key> {
  /**
   * Calls back when it is the key's turn: at once for the first in a turn of the event loop, the others follow one each, and
   * one who took more than its ration of the loop later. One that was left (its signal is aborted) when its turn comes is
   * passed over.
   */
  wait(key: Key, left: AbortSignal, go: () => void): void;
}

export interface TurnsOptions<Key extends { readonly key: string }> {
  ration: LoopRation;
  /** Some of the key's wait from now on, or none any more. */
  onHold: (key: Key, held: boolean) => void;
}

interface Waiting {
  left: AbortSignal;
  go: () => void;
}

export function createTurns<Key extends { readonly key: string }>({ ration, onHold }: TurnsOptions<Key>): Turns<Key> {
  const waiting = new Map<Key, Waiting[]>();
  /** Keys that went on in this turn of the event loop. */
  const served = new Set<Key>();
  let scheduled = false;
  let timer: NodeJS.Timeout | undefined;

  /** Takes the key's first that is still wanted out of its queue. */
  const take = (queue: Waiting[]): Waiting | undefined => {
    const at = queue.findIndex(({ left }) => !left.aborted);
    return queue.splice(0, at < 0 ? queue.length : at + 1)[at];
  };

  const next = () => {
    clearTimeout(timer);
    scheduled = false;
    served.clear();
    let pauseMs = Number.POSITIVE_INFINITY;
    for (const [key, queue] of [...waiting]) {
      const waitMs = ration.waitMs(key.key);
      if (waitMs > 0) {
        pauseMs = Math.min(pauseMs, waitMs);
        continue;
      }
      const first = take(queue);
      if (queue.length === 0) {
        waiting.delete(key);
        onHold(key, false);
      }
      if (first !== undefined) {
        served.add(key);
        ration.spend(key.key);
        first.go();
      }
    }
    if (served.size > 0) {
      schedule();
    } else if (waiting.size > 0) {
      timer = setTimeout(next, Math.ceil(pauseMs));
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
      const queue = waiting.get(key);
      if (queue !== undefined) {
        queue.push({ left, go });
        return;
      }
      schedule();
      if (!served.has(key) && ration.waitMs(key.key) === 0) {
        served.add(key);
        ration.spend(key.key);
        go();
        return;
      }
      waiting.set(key, [{ left, go }]);
      onHold(key, true);
    },
  };
}
