import { type ServerResponse, STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { native } from "@weightline/rdma-native";
import {
  ActiveList,
  type BoundedLog,
  createLoopRation,
  type Listed,
  toWeightlineError,
  unaryAnswer,
  WeightlineError,
} from "@weightline/runtime";
import type { LeaseOwner, LeaseTable } from "../leases/lease-table.ts";
import { type AgentProcess, type Caller, type CallerGroup, type CallerRole, groupKeyOf, roleOf } from "./caller.ts";
import {
  CONNECTIONS_MAX,
  DRAIN_TIMEOUT_MS,
  FAREWELL_MS,
  POD_CALLS_MAX,
  POD_CONNECTIONS_MAX,
  POD_FILLS_MAX,
  REFUSALS_MAX,
  SWEEP_INTERVAL_MS,
  WAITING_MAX_BYTES,
} from "./limits.ts";
import type { LocalSocket } from "./local-socket.ts";
import { createTurns } from "./turns.ts";

/** Why a local caller was turned away; the metric's label. */
export type Refusal = "connections" | "calls" | "unread";

export interface ConnectionsOptions {
  leases: LeaseTable;
  log: BoundedLog;
  onRefusal: (refusal: Refusal) => void;
  /** The next connections of a process, and of its container in a pod, are not to come before so many milliseconds. */
  onHold: (pid: number, holdMs: number) => void;
}

/** The open connections of the local API: who is at each, and the caps of each pod. */
export interface Connections {
  /** Takes a new socket in, or turns it away with words. False: it is taken care of. */
  admit(socket: LocalSocket): boolean;
  callerOf(socket: Socket): Caller | undefined;
  /** A call began; it ends with its response. Returns why it must be refused, if it must; its connection may be closed then. */
  begin(socket: Socket, response: ServerResponse): WeightlineError | undefined;
  /**
   * Lets a call go on: those who call at once do by turns, one call of each group after another, and by their ration of the
   * event loop. A group of which some wait is not read meanwhile. Not when it was left.
   */
  turn(socket: Socket, go: () => void): void;
  /** Closes those without a call, and after `graceMs` the others. */
  stop(graceMs: number): Promise<void>;
}

/** A call whose answer is not sent yet. */
interface Call extends Listed {
  readonly response: ServerResponse;
}

interface Connection {
  readonly socket: LocalSocket;
  readonly caller: Caller;
  readonly group: Group;
  readonly calls: ActiveList<Call>;
  /** Calls refused since the last one that was not. */
  refusals: number;
  /** Bytes that its reader had taken at the last look, and when they last grew. */
  takenBytes: number;
  takenAt: number;
  /** Forgets it; its socket is the caller's to destroy. Idempotent. */
  leave(): void;
}

interface Group extends CallerGroup {
  /** Oldest first. */
  readonly connections: Set<Connection>;
  calls: number;
  fills: number;
  /** Some of its calls wait for their turn, and no more of it is read until they had theirs. */
  held: boolean;
  /** Connections that are being told that there is no room. */
  farewells: number;
  /** What its calls above the cap are told: always the same. */
  readonly callRefused: WeightlineError;
}

/** Key of those whose process the kernel does not tell. */
const UNKNOWN = "a process that is not known";

/** What those who wait for a caller are ended with when it left; one for all, since an error is dear to make. */
const CALLER_LEFT = new WeightlineError("Cancelled", "the caller's connection ended");

/** How often a stop looks whether the last answers are out. */
const STOP_LOOK_MS = 10;

/**
 * Until what runs now has ended. Node ends each call of a connection that closes with two errors of its own; their stacks take
 * longer than the calls, of which hundreds may be pipelined, and nobody reads them.
 */
function dropStackTraces(): void {
  const { stackTraceLimit } = Error;
  if (stackTraceLimit > 0) {
    Error.stackTraceLimit = 0;
    queueMicrotask(() => {
      Error.stackTraceLimit = stackTraceLimit;
    });
  }
}

function tooMany(key: string, field: string, count: number, limit: number, wayOut: string): WeightlineError {
  const facts = { field, value: String(count), limit: String(limit), wayOut };
  return new WeightlineError("ResourceExhausted", `${key} has ${count} ${field} at once`, facts);
}

export function createConnections({ leases, log, onRefusal, onHold }: ConnectionsOptions): Connections {
  const self = native.openProcess(process.pid);
  const agent: AgentProcess = { uid: self.uid, cgroup: self.cgroup };
  native.closeProcess(self.process);
  const bySocket = new Map<Socket, Connection>();
  const groups = new Map<string, Group>();
  const ration = createLoopRation();
  const turns = createTurns<Group>({
    ration,
    onHold(group, held) {
      group.held = held;
      for (const { socket } of group.connections) {
        socket.hold(held);
      }
    },
  });
  let sweep: NodeJS.Timeout | undefined;

  const groupOf = (key: string): Group => {
    const known = groups.get(key);
    if (known !== undefined) {
      return known;
    }
    const made: Group = {
      key,
      connections: new Set(),
      calls: 0,
      fills: 0,
      held: false,
      farewells: 0,
      callRefused: tooMany(key, "calls", POD_CALLS_MAX, POD_CALLS_MAX, "wait for one of its calls to end"),
      beginFill() {
        if (made.fills >= POD_FILLS_MAX) {
          throw tooMany(key, "fills", made.fills, POD_FILLS_MAX, "wait for one of the models that it acquires");
        }
        made.fills += 1;
        return () => {
          made.fills -= 1;
          forgetIdle(made);
        };
      },
    };
    groups.set(key, made);
    return made;
  };

  /** One with fills stays, so that reconnecting does not begin a new count. */
  const forgetIdle = (group: Group) => {
    if (group.connections.size === 0 && group.fills === 0 && group.farewells === 0) {
      groups.delete(group.key);
    }
  };

  const add = (socket: LocalSocket, group: Group, owner: LeaseOwner, role: CallerRole): Connection => {
    const closed = new AbortController();
    const connection: Connection = {
      socket,
      caller: { owner, role, group, closed: closed.signal },
      group,
      calls: new ActiveList(),
      refusals: 0,
      takenBytes: 0,
      takenAt: performance.now(),
      leave() {
        if (!group.connections.delete(connection)) {
          return;
        }
        bySocket.delete(socket);
        connection.calls.forEach((call) => {
          connection.calls.delete(call);
          group.calls -= 1;
        });
        closed.abort(CALLER_LEFT);
        leases.leave(owner);
        forgetIdle(group);
      },
    };
    bySocket.set(socket, connection);
    socket.hold(group.held);
    group.connections.add(connection);
    socket.once("close", () => {
      // Before Node takes down the calls of the connection, which costs more than to begin them.
      ration.spend(group.key);
      connection.leave();
      dropStackTraces();
    });
    return connection;
  };

  const largest = (): Group | undefined => {
    let most: Group | undefined;
    for (const group of groups.values()) {
      if (group.connections.size > (most?.connections.size ?? 0)) {
        most = group;
      }
    }
    return most;
  };

  /** At a cap the oldest silent connection goes; where all are busy the newcomer is told why it cannot stay. */
  const makeRoom = (own: Group): WeightlineError | undefined => {
    const full = own.connections.size >= POD_CONNECTIONS_MAX;
    const crowd = full ? own : bySocket.size >= CONNECTIONS_MAX ? largest() : undefined;
    if (crowd === undefined) {
      return undefined;
    }
    const silent = [...crowd.connections].find(({ calls }) => calls.size === 0);
    if (silent !== undefined) {
      silent.leave();
      silent.socket.destroy();
      return undefined;
    }
    const limit = full ? POD_CONNECTIONS_MAX : CONNECTIONS_MAX;
    return tooMany(crowd.key, "connections", crowd.connections.size, limit, "wait for one of its calls to end");
  };

  /** The reason is written before anything is read; the socket then waits a moment, so that a client that is writing reads it. */
  const turnAway = (socket: Socket, group: Group, error: WeightlineError) => {
    onRefusal("connections");
    log(
      "warn",
      { event: "connection-refused", caller: group.key, error: error.message },
      "turned a local connection away",
    );
    if (group.farewells >= POD_CONNECTIONS_MAX) {
      socket.destroy();
      forgetIdle(group);
      return;
    }
    group.farewells += 1;
    const timer = setTimeout(() => socket.destroy(), FAREWELL_MS);
    socket.once("close", () => {
      clearTimeout(timer);
      group.farewells -= 1;
      forgetIdle(group);
    });
    socket.once("error", () => socket.destroy());
    const { status, contentType, body } = unaryAnswer(error);
    const head = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\ncontent-type: ${contentType}\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n`;
    socket.end(Buffer.concat([Buffer.from(head), body]));
    socket.resume();
  };

  /** Closes connections whose reader has gone to sleep, or lets too much wait. */
  const look = () => {
    const now = performance.now();
    for (const connection of bySocket.values()) {
      const { socket, calls, group } = connection;
      const waiting = socket.writableLength;
      const taken = socket.bytesWritten - waiting;
      if (waiting === 0 || taken !== connection.takenBytes) {
        connection.takenBytes = taken;
        connection.takenAt = now;
      }
      let queued = waiting;
      calls.forEach(({ response }) => {
        queued += response.socket === null ? response.writableLength : 0;
      });
      if (queued > WAITING_MAX_BYTES || now - connection.takenAt >= DRAIN_TIMEOUT_MS) {
        onRefusal("unread");
        log(
          "warn",
          { event: "connection-dropped", caller: group.key, waiting_bytes: queued },
          "closed a local connection whose answers are not read",
        );
        socket.destroy();
      }
    }
    if (bySocket.size === 0) {
      clearInterval(sweep);
      sweep = undefined;
    }
  };

  const enter = (socket: LocalSocket): boolean => {
    const peer = native.peerProcess(socket.descriptor);
    const role = roleOf(peer, agent);
    const group = groupOf(groupKeyOf(peer, role, agent));
    ration.spend(group.key);
    const holdMs = ration.waitMs(group.key);
    if (holdMs > 0) {
      onHold(peer.pid, Math.ceil(holdMs));
    }
    const refused = makeRoom(group);
    if (refused !== undefined) {
      native.closeProcess(peer.process);
      turnAway(socket, group, refused);
      return false;
    }
    add(socket, group, leases.enter(peer), role);
    sweep ??= setInterval(look, SWEEP_INTERVAL_MS).unref();
    return true;
  };

  return {
    admit(socket) {
      try {
        return enter(socket);
      } catch (error) {
        turnAway(socket, groupOf(UNKNOWN), toWeightlineError(error));
        return false;
      }
    },
    turn(socket, go) {
      const connection = bySocket.get(socket);
      if (connection !== undefined) {
        turns.wait(connection.group, connection.caller.closed, go);
      }
    },
    callerOf: (socket) => bySocket.get(socket)?.caller,
    begin(socket, response) {
      const connection = bySocket.get(socket);
      if (connection === undefined) {
        return undefined;
      }
      const { group, calls } = connection;
      if (group.calls >= POD_CALLS_MAX) {
        ration.spend(group.key);
        onRefusal("calls");
        log("warn", { event: "call-refused", caller: group.key, limit: POD_CALLS_MAX }, "refused a local call");
        connection.refusals += 1;
        if (connection.refusals >= REFUSALS_MAX) {
          connection.leave();
          socket.destroy();
        }
        return group.callRefused;
      }
      connection.refusals = 0;
      group.calls += 1;
      const call: Call = { slot: -1, response };
      calls.add(call);
      response.once("close", () => {
        if (calls.delete(call)) {
          group.calls -= 1;
        }
      });
      return undefined;
    },
    async stop(graceMs) {
      const end = performance.now() + graceMs;
      while (bySocket.size > 0) {
        for (const { socket, calls } of [...bySocket.values()]) {
          if (calls.size === 0 || performance.now() >= end) {
            socket.destroy();
          }
        }
        await sleep(STOP_LOOK_MS);
      }
      clearInterval(sweep);
    },
  };
}
