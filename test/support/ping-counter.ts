import { connect, createServer, type Socket } from "node:net";

/** A relay of HTTP/2 connections that counts their frames. */
export interface PingCounter {
  /** Where to dial instead of the server. */
  readonly port: number;
  connections(): number;
  /** PING frames of clients, without their answers to the server's. */
  sent(): number;
  /** PING frames of the server with the flag ACK. */
  answered(): number;
  goaways(): number;
  close(): void;
}

const FRAME_HEAD_BYTES = 9;
const PREFACE_BYTES = 24;
const PING = 6;
const GOAWAY = 7;
const ACK = 1;

/** Calls `frame` with type and flags of each frame, however the bytes come. `skip`: bytes before the first one. */
function frameReader(skip: number, frame: (type: number, flags: number) => void): (bytes: Buffer) => void {
  let passing = skip;
  let head = Buffer.alloc(0);
  return (bytes) => {
    for (let rest = bytes; rest.length > 0; ) {
      if (passing > 0) {
        const taken = Math.min(passing, rest.length);
        passing -= taken;
        rest = rest.subarray(taken);
        continue;
      }
      const missing = FRAME_HEAD_BYTES - head.length;
      head = Buffer.concat([head, rest.subarray(0, missing)]);
      rest = rest.subarray(missing);
      if (head.length === FRAME_HEAD_BYTES) {
        passing = head.readUIntBE(0, 3);
        frame(head[3] ?? 0, head[4] ?? 0);
        head = Buffer.alloc(0);
      }
    }
  };
}

/** Listens on loopback and relays every connection to the server's port. */
export async function createPingCounter(serverPort: number): Promise<PingCounter> {
  const sockets = new Set<Socket>();
  let connections = 0;
  let sent = 0;
  let answered = 0;
  let goaways = 0;
  const relay = createServer((client) => {
    connections += 1;
    const server = connect(serverPort, "127.0.0.1");
    const fromClient = frameReader(PREFACE_BYTES, (type, flags) => {
      sent += Number(type === PING && (flags & ACK) === 0);
    });
    const fromServer = frameReader(0, (type, flags) => {
      answered += Number(type === PING && (flags & ACK) === ACK);
      goaways += Number(type === GOAWAY);
    });
    for (const [socket, other, read] of [
      [client, server, fromClient],
      [server, client, fromServer],
    ] as const) {
      sockets.add(socket);
      socket.on("error", () => other.destroy());
      socket.on("close", () => other.destroy());
      socket.on("data", read);
      socket.pipe(other);
    }
  });
  await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
  return {
    port: (relay.address() as { port: number }).port,
    connections: () => connections,
    sent: () => sent,
    answered: () => answered,
    goaways: () => goaways,
    close() {
      for (const socket of sockets) {
        socket.destroy();
      }
      relay.close();
    },
  };
}
