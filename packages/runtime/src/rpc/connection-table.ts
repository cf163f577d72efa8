import type { Socket } from "node:net";
import { OrderedList, Place } from "../ordered-list.ts";
import type { LimitReason, OnLimit, ServerLimits } from "./server-limits.ts";
import { createTurns } from "./turns.ts";

/** What all connections of one address share. */
export interface Peer {
  readonly address: string;
  readonly connections: Set<Connection>;
  /** Those without a running call, the longest idle first. */
  readonly idle: OrderedList<Connection>;
  /** Of requests that are read and of replies that were not taken when last looked at. */
  bytes: number;
}

/** One accepted connection. */
export class Connection {
  readonly key: string;
  readonly peer: Peer;
  readonly socket: Socket;
  readonly acceptedAtMs = performance.now();
  /** What HTTP/2 is spoken on: the socket, or the TLS on it; undefined until that is known. */
  http2: Socket | undefined;
  /** Asks the client to come again elsewhere; undefined until HTTP/2 is spoken. */
  session: { close(): void } | undefined;
  callsCount = 0;
  /** Among the idle ones of its peer, and of all. */
  readonly idleOfPeer = new Place<Connection>(this);
  readonly idleOfAll = new Place<Connection>(this);

  constructor(peer: Peer, socket: Socket) {
    this.key = keyOf(socket);
    this.peer = peer;
    this.socket = socket;
  }
}

/** The connections of a server: how many each address may have, and which one goes when it is one too many. */
export interface ConnectionTable {
  /** False: the connection was refused and is gone. */
  admit(socket: Socket): boolean;
  /** HTTP/2 can be spoken from now on, on the connection itself or on the TLS on it; undefined when it is gone already. */
  ready(socket: Socket): Connection | undefined;
  callBegan(connection: Connection): void;
  callEnded(connection: Connection): void;
  /** Starts the call's work when it is its peer's turn. */
  startCall(connection: Connection, start: () => void): void;
  /** Connections that are open. */
  count(): number;
  /** Ends those on which HTTP/2 cannot be spoken yet. */
  endUnready(): void;
  /** Resolves when none is open. */
  emptied(): Promise<void>;
  /** Ends those that are left. */
  close(): void;
}

/** Which connection it is, the same for a socket and for the TLS on it. */
interface ConnectionEnds {
  readonly remoteAddress?: string | undefined;
  readonly remotePort?: number | undefined;
  readonly localAddress?: string | undefined;
}

/** HTTP/2's preface and an empty SETTINGS frame: the least that a client sends at once. */
const GREETING_BYTES = 24 + 9;
/** One that was asked to go, and has no call, gets so long to close by itself. */
const GOING_MS = 1000;
const LOOK_INTERVAL_MS = 1000;

export function createConnectionTable(limits: ServerLimits, onLimit: OnLimit): ConnectionTable {
  const peers = new Map<string, Peer>();
  const byEnds = new Map<string, Connection>();
  /** Of those that wait until none is open. */
  const waiting: Array<() => void> = [];
  /** The longest idle first. */
  const idle = new OrderedList<Connection>();
  /** Of whom nothing is known yet, the oldest first. */
  const fresh = new Set<Connection>();

  const turns = createTurns(limits.callsPerTurnCount);

  const forget = (connection: Connection) => {
    const { key, peer } = connection;
    peer.connections.delete(connection);
    peer.idle.delete(connection.idleOfPeer);
    idle.delete(connection.idleOfAll);
    fresh.delete(connection);
    turns.forget(connection);
    if (byEnds.get(key) === connection) {
      byEnds.delete(key);
    }
    if (byEnds.size === 0) {
      for (const resolve of waiting.splice(0)) {
        resolve();
      }
    }
    if (peer.connections.size === 0 && peers.get(peer.address) === peer) {
      peers.delete(peer.address);
    }
  };
  /** With GOAWAY where there is a session: a client whose call comes now makes it on another connection. */
  const endIdle = (connection: Connection, reason: LimitReason) => {
    const { socket, session, peer } = connection;
    onLimit(reason, peer.address);
    forget(connection);
    session?.close();
    setTimeout(() => socket.destroy(), session === undefined ? 0 : GOING_MS).unref();
  };
  /** Makes room among `others` by ending the longest idle; false when all have calls. */
  const makeRoom = (others: OrderedList<Connection>, reason: LimitReason): boolean => {
    const oldest = others.first;
    if (oldest !== undefined) {
      endIdle(oldest, reason);
    }
    return oldest !== undefined;
  };
  const look = setInterval(() => {
    const now = performance.now();
    for (const connection of fresh) {
      if (now - connection.acceptedAtMs < limits.silentConnectionMs) {
        break;
      }
      fresh.delete(connection);
      if ((connection.http2?.bytesRead ?? 0) < GREETING_BYTES) {
        endIdle(connection, "silent-connection");
      }
    }
  }, LOOK_INTERVAL_MS).unref();

  const reasonToRefuse = (peer: Peer | undefined): LimitReason | undefined => {
    if (peer !== undefined && peer.connections.size >= limits.connectionsPerAddressCount) {
      return makeRoom(peer.idle, "connections-per-address") ? undefined : "connections-per-address";
    }
    if (byEnds.size >= limits.connectionsCount) {
      return makeRoom(idle, "connections") ? undefined : "connections";
    }
    return undefined;
  };

  return {
    admit(socket) {
      const address = socket.remoteAddress;
      if (address === undefined) {
        socket.destroy();
        return false;
      }
      const reason = reasonToRefuse(peers.get(address));
      if (reason !== undefined) {
        onLimit(reason, address);
        socket.resetAndDestroy();
        return false;
      }
      const peer = peers.get(address) ?? { address, connections: new Set(), idle: new OrderedList(), bytes: 0 };
      const connection = new Connection(peer, socket);
      peers.set(address, peer);
      byEnds.set(connection.key, connection);
      peer.connections.add(connection);
      peer.idle.add(connection.idleOfPeer);
      idle.add(connection.idleOfAll);
      fresh.add(connection);
      socket.once("close", () => forget(connection));
      return true;
    },
    ready(socket) {
      const connection = byEnds.get(keyOf(socket));
      if (connection !== undefined) {
        connection.http2 = socket;
      }
      return connection;
    },
    callBegan(connection) {
      connection.callsCount += 1;
      if (connection.callsCount === 1) {
        connection.peer.idle.delete(connection.idleOfPeer);
        idle.delete(connection.idleOfAll);
        fresh.delete(connection);
      }
    },
    callEnded(connection) {
      connection.callsCount -= 1;
      if (connection.callsCount === 0 && connection.peer.connections.has(connection)) {
        connection.peer.idle.add(connection.idleOfPeer);
        idle.add(connection.idleOfAll);
      }
    },
    startCall: (connection, start) => turns.start(connection, start),
    count: () => byEnds.size,
    endUnready() {
      for (const { http2, socket } of byEnds.values()) {
        if (http2 === undefined) {
          socket.destroy();
        }
      }
    },
    emptied() {
      if (byEnds.size === 0) {
        return Promise.resolve();
      }
      return new Promise((resolve) => waiting.push(resolve));
    },
    close() {
      clearInterval(look);
      turns.close();
      for (const { socket } of byEnds.values()) {
        socket.destroy();
      }
    },
  };
}

/** A client may use one port of its own towards several addresses of the server. */
function keyOf({ remoteAddress, remotePort, localAddress }: ConnectionEnds): string {
  return `${remoteAddress} ${remotePort} ${localAddress}`;
}
