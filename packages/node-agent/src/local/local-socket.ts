import { Socket, type SocketConstructorOpts } from "node:net";
import type { DuplexOptions } from "node:stream";

/** Room for what one read takes: a dozen calls. */
const READ_BYTES = 2048;
/**
 * Bytes of answers that the kernel does not take at which Node reads no more of a connection, until they are gone: few enough
 * that one who reads slowly does not come to the cap of calls.
 */
const UNREAD_BYTES = 32 * 1024;

/** What a read puts into, of all sockets: it is copied before the next. */
const room = new Uint8Array(READ_BYTES);

/** What Node's sockets have below; there is no public name for it. */
interface Handle {
  readonly fd: number;
  /** Node wants to read. */
  readonly reading?: boolean;
  readStop(): number;
  readStart(): number;
  /** True: Node's HTTP parser does not read from it in the socket's place. */
  _consumed?: boolean;
}

function handleOf(socket: Socket): Handle | undefined {
  return (socket as unknown as { _handle?: Handle | null })._handle ?? undefined;
}

/**
 * A socket of the local API. It takes little at a time: Node's HTTP parser by itself reads 64 KiB of a connection and makes
 * a request of each of the hundreds of calls that these may hold before anybody else has a turn. And it can be held.
 */
export class LocalSocket extends Socket {
  #held = false;

  /** `descriptor` is the socket's from then on. */
  constructor(descriptor: number) {
    const options: SocketConstructorOpts & DuplexOptions = {
      fd: descriptor,
      // What Node reads ahead while it takes nothing comes to the parser in one go afterwards.
      readableHighWaterMark: READ_BYTES,
      writableHighWaterMark: UNREAD_BYTES,
      readable: true,
      writable: true,
      allowHalfOpen: true,
      onread: { buffer: room, callback: (bytes) => this.push(Buffer.from(room.subarray(0, bytes))) },
    };
    super(options);
    const handle = handleOf(this);
    if (handle !== undefined) {
      handle._consumed = true;
      const start = handle.readStart;
      handle.readStart = () => (this.#held ? 0 : start.call(handle));
    }
  }

  /** -1 when it is closed. */
  get descriptor(): number {
    return handleOf(this)?.fd ?? -1;
  }

  /** While it is held nothing is read of it, whatever Node wants: the kernel keeps what comes. */
  hold(held: boolean): void {
    this.#held = held;
    const handle = handleOf(this);
    if (held) {
      handle?.readStop();
    } else if (handle?.reading === true) {
      handle.readStart();
    }
  }
}
