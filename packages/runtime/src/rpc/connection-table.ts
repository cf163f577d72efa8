import type { Http2Session } from "node:http2";
import type { Socket } from "node:net";
import type { LimitReason, OnLimit, ServerLimits } from "./server-limits.ts";

/** What all connections of one address share. */
export interface Peer {
  readonly address: string;
  readonly connections: Set<Connection>;
  /** Those without a running call, the longest idle first. */
  readonly idle: Set<Connection>;
  /** Of requests that are read and of replies that were not taken when last looked at. */
  bytes: number;
}

/** One accepted connection. */
export interface Connection {
  readonly peer: Peer;
  readonly socket: Socket;
  readonly acceptedAtMs: number;
  /** Known from its first call on. */
  session: Http2Session | undefined;
  callsCount: number;
}

/** The connections of a server: how many each address may have, and which one goes when it is one too many. */
export interface ConnectionTable {
  /** False: the connection was refused and is gone. */
  admit(socket: Socket): boolean;
  /** A call began on the connection from this address and port; undefined for a connection that is gone already. */
  callBegan(address: string, port: number, session: Http2Session | undefined): Connection | undefined;
  callEnded(connection: Connection): void;
  /** Connections that are open. */
  count(): number;
  close(): void;
}

/** HTTP/2's preface and an empty SETTINGS frame: the least that a client sends at once. */
const GREETING_BYTES = 24 + 9;
/** One that was asked to go, and has no call, gets so long to close by itself. */
const GOING_MS = 1000;
const LOOK_INTERVAL_MS = 1000;

export function createConnectionTable(limits: ServerLimits, onLimit: OnLimit): ConnectionTable {
  const peers = new Map<string, Peer>();
  const byEndpoint = new Map<string, Connection>();
  /** The longest idle first. */
  const idle = new Set<Connection>();
  /** Of whom nothing is known yet, the oldest first. */
  const fresh = new Set<Connection>();

  const forget = (connection: Connection, endpoint: string) => {
    const { peer } = connection;
    peer.connections.delete(connection);
    peer.idle.delete(connection);
    idle.delete(connection);
    fresh.delete(connection);
    if (byEndpoint.get(endpoint) === connection) {
      byEndpoint.delete(endpoint);
    }
    if (peer.connections.size === 0 && peers.get(peer.address) === peer) {
      peers.delete(peer.address);
    }
  };
  /** With GOAWAY where there is a session: a client whose call comes now makes it on another connection. */
  const endIdle = (connection: Connection, reason: LimitReason) => {
    const { socket, session, peer } = connection;
    onLimit(reason, peer.address);
    forget(connection, endpointOf(socket));
    session?.close();
    setTimeout(() => socket.destroy(), session === undefined ? 0 : GOING_MS).unref();
  };
  /** Makes room among `others` by ending the longest idle; false when all have calls. */
  const makeRoom = (others: Set<Connection>, reason: LimitReason): boolean => {
    const [oldest] = others;
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
      if (connection.socket.bytesRead < GREETING_BYTES) {
        endIdle(connection, "silent-connection");
      }
    }
  }, LOOK_INTERVAL_MS).unref();

  const reasonToRefuse = (peer: Peer | undefined): LimitReason | undefined => {
    if (peer !== undefined && peer.connections.size >= limits.connectionsPerAddressCount) {
      return makeRoom(peer.idle, "connections-per-address") ? undefined : "connections-per-address";
    }
    if (byEndpoint.size >= limits.connectionsCount) {
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
      const peer = peers.get(address) ?? { address, connections: new Set(), idle: new Set(), bytes: 0 };
      const connection = { peer, socket, acceptedAtMs: performance.now(), session: undefined, callsCount: 0 };
      const endpoint = endpointOf(socket);
      peers.set(address, peer);
      byEndpoint.set(endpoint, connection);
      for (const set of [peer.connections, peer.idle, idle, fresh]) {
        set.add(connection);
      }
      socket.once("close", () => forget(connection, endpoint));
      return true;
    },
    callBegan(address, port, session) {
      const connection = byEndpoint.get(`${address} ${port}`);
      if (connection !== undefined) {
        connection.callsCount += 1;
        connection.session = session;
        connection.peer.idle.delete(connection);
        idle.delete(connection);
        fresh.delete(connection);
      }
      return connection;
    },
    callEnded(connection) {
      connection.callsCount -= 1;
      if (connection.callsCount === 0 && connection.peer.connections.has(connection)) {
        connection.peer.idle.add(connection);
        idle.add(connection);
      }
    },
    count: () => byEndpoint.size,
    close: () => clearInterval(look),
  };
}

function endpointOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}
