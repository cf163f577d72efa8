import type { Socket } from "node:net";
import { OrderedList, Place } from "../ordered-list.ts";
import type { Connection, Peer } from "./connection-table.ts";

/**
 * Turns of the event loop. Of a peer's calls few start in one, if there are other peers, and no more than take some
 * milliseconds, if there are none: one may come. The others wait, and its connections are not read until they have started,
 * so that others are read in between. Of its connections one more is read with each turn: none of them waits for ever. What
 * goes on after a wait, like the next message of a stream, takes a place in a turn too, but its time is not seen here.
 */
export interface Turns {
  /** Starts a call of the connection, now or in a later turn. */
  start(connection: Connection, start: () => void): void;
  /** The connection is gone. */
  forget(connection: Connection): void;
  /** Starts what waits. */
  close(): void;
}

/** What a socket has below, also once HTTP/2 reads from it in its place: the kernel keeps what comes while it is stopped. */
interface Handle {
  readStop(): void;
  readStart(): void;
}

/** A peer that begins calls. */
class Taker {
  readonly peer: Peer;
  /** Calls that started in this turn. */
  startedCount = 0;
  /** When it last began one. */
  tookAtMs = 0;
  /** Calls that wait for a turn. */
  readonly waiting: Array<() => void> = [];
  /** Connections that began calls since it was last quiet. */
  readonly talking = new Set<Connection>();
  /** Those that are not read now, the longest held first. */
  readonly held = new Set<Connection>();
  readonly placeAmongLatest = new Place<Taker>(this);
  readonly placeAmongBusy = new Place<Taker>(this);

  constructor(peer: Peer) {
    this.peer = peer;
  }
}

/** Who began a call so lately is one whom others must not keep waiting. */
const ACTIVE_MS = 2000;
/** What the calls of one who is alone may take of a turn before the next ones wait. */
const ALONE_TURN_MS = 2;

function handleOf(socket: Socket): Handle | undefined {
  return socket.destroyed ? undefined : ((socket as unknown as { _handle: Handle | null })._handle ?? undefined);
}

export function createTurns(callsPerTurnCount: number): Turns {
  /** Who began a call lately. */
  const takers = new Map<Peer, Taker>();
  /** The same, the longest ago first. */
  const latest = new OrderedList<Taker>();
  /** Those with calls that started in this turn or wait, or with connections that are not read. */
  const busy = new OrderedList<Taker>();
  let ends: NodeJS.Immediate | undefined;
  /** When the turn began: with the first call in it. */
  let beganAtMs = 0;

  const isFull = (taker: Taker) =>
    takers.size > 1 ? taker.startedCount >= callsPerTurnCount : performance.now() - beganAtMs >= ALONE_TURN_MS;

  const release = (taker: Taker, count: number) => {
    for (const connection of taker.held) {
      if (count-- <= 0) {
        return;
      }
      taker.held.delete(connection);
      handleOf(connection.socket)?.readStart();
    }
  };
  const holdOne = (taker: Taker, connection: Connection) => {
    if (!taker.held.has(connection)) {
      taker.held.add(connection);
      handleOf(connection.socket)?.readStop();
    }
  };
  /** All of a peer, which may be a thousand: after that, those that are read again one by one. */
  const hold = (taker: Taker, connection: Connection) => {
    if (taker.held.size > 0) {
      holdOne(taker, connection);
      return;
    }
    for (const one of taker.talking) {
      holdOne(taker, one);
    }
  };
  const takeTurn = (taker: Taker) => {
    const usedUp = isFull(taker);
    taker.startedCount = 0;
    beganAtMs = performance.now();
    while (taker.waiting.length > 0 && !isFull(taker)) {
      taker.startedCount += 1;
      taker.waiting.shift()?.();
    }
    if (taker.waiting.length === 0) {
      release(taker, usedUp ? 1 : taker.held.size);
    }
  };
  const forgetQuiet = () => {
    const now = performance.now();
    for (let taker = latest.first; taker !== undefined; taker = latest.first) {
      if (now - taker.tookAtMs < ACTIVE_MS) {
        return;
      }
      if (busy.has(taker.placeAmongBusy)) {
        taker.tookAtMs = now;
        latest.add(taker.placeAmongLatest);
      } else {
        latest.delete(taker.placeAmongLatest);
        takers.delete(taker.peer);
      }
    }
  };
  const endTurn = () => {
    ends = undefined;
    busy.forEach((taker) => {
      takeTurn(taker);
      if (taker.startedCount === 0 && taker.held.size === 0 && taker.waiting.length === 0) {
        busy.delete(taker.placeAmongBusy);
      }
    });
    forgetQuiet();
    if (busy.size > 0) {
      ends = setImmediate(endTurn);
    }
  };
  /** The peer's taker, which is now the latest. */
  const takerOf = (peer: Peer): Taker => {
    let taker = takers.get(peer);
    if (taker === undefined) {
      taker = new Taker(peer);
      takers.set(peer, taker);
    }
    if (!busy.has(taker.placeAmongBusy)) {
      busy.add(taker.placeAmongBusy);
      latest.add(taker.placeAmongLatest);
      taker.tookAtMs = performance.now();
      if (ends === undefined) {
        beganAtMs = taker.tookAtMs;
        ends = setImmediate(endTurn);
      }
    }
    return taker;
  };

  return {
    start(connection, start) {
      if (connection.socket.destroyed) {
        start();
        return;
      }
      const taker = takerOf(connection.peer);
      taker.talking.add(connection);
      if (isFull(taker) || taker.waiting.length > 0) {
        taker.waiting.push(start);
        hold(taker, connection);
        return;
      }
      taker.startedCount += 1;
      start();
    },
    forget(connection) {
      const taker = takers.get(connection.peer);
      taker?.talking.delete(connection);
      taker?.held.delete(connection);
    },
    close() {
      for (const taker of takers.values()) {
        for (const start of taker.waiting.splice(0)) {
          start();
        }
        release(taker, taker.held.size);
      }
      if (ends !== undefined) {
        clearImmediate(ends);
      }
    },
  };
}
