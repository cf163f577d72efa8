import type { Listed } from "../active-list.ts";
import type { Http2Stream, StreamTaker } from "../http2/http2-stream.ts";
import type { Caller } from "../security/access.ts";
import type { Connection } from "./connection-table.ts";
import { type GrpcStatus, OK_TRAILERS, REPLY_HEAD, statusOnly, trailersOf } from "./grpc-status.ts";
import { MessageReader, type ReceivedMessage } from "./message-reader.ts";

/** What a server does with its calls. */
export interface CallHost {
  /** So many bytes of the request came. */
  onPiece(call: GrpcCall, bytes: number): void;
  /** More of the request is here than before, or all of it. */
  onMore(call: GrpcCall): void;
  /** The call's stream is over. */
  onClose(call: GrpcCall): void;
}

export interface GrpcCallOptions {
  host: CallHost;
  connection: Connection;
  stream: Http2Stream;
  /** Its requests are a stream: the client's own messages may be far apart. */
  streamsRequests: boolean;
  /** "/package.Service/Method" */
  path: string;
  /** Names and values of the request's headers, in turn. */
  fields: readonly string[];
  encoding: string;
  /** On the clock of performance.now(); Infinity: none. */
  deadlineAtMs: number;
}

/** gRPC's flag and length before a message. */
const PREFIX_BYTES = 5;
/** Bytes of a stream's requests that wait for their handler before its client is made to wait. */
const READ_AHEAD_BYTES = 16_384;

const ignore = (): void => undefined;

function prefixOf(message: Uint8Array): Buffer {
  const prefix = Buffer.allocUnsafe(PREFIX_BYTES);
  prefix[0] = 0;
  prefix.writeUInt32BE(message.length, 1);
  return prefix;
}

/** One call of gRPC on a stream of HTTP/2. */
export class GrpcCall implements Listed, StreamTaker {
  slot = -1;
  readonly connection: Connection;
  readonly stream: Http2Stream;
  readonly streamsRequests: boolean;
  readonly path: string;
  readonly fields: readonly string[];
  readonly encoding: string;
  readonly deadlineAtMs: number;
  /** Set before its handler runs, where security is on. */
  caller: Caller | undefined;
  /** The request is whole. */
  isWhole = false;
  /** It has its status, or nobody waits for one any more. */
  isOver = false;
  /** It may be served: its caller is known. */
  isAdmitted = false;
  /** Its handler runs, or waits for its turn. */
  isStarted = false;
  /** For {@link CallWatch}. */
  readonly account = {
    /** Bytes of the request that came and are kept. */
    requestBytes: 0,
    /** Part of them: what a compressed message may become. */
    unpackedBytes: 0,
    /** Bytes of the reply that the client has not taken, when last looked at. */
    replyBytes: 0,
    movedAtMs: 0,
    /** What its connection had sent when it moved. */
    movedAtBytes: 0,
  };
  readonly #host: CallHost;
  readonly #reader = new MessageReader();
  #hasBegun = false;
  #onCancel: (isLate: boolean) => void = ignore;
  #onMore = ignore;
  #onDrain = ignore;

  constructor(options: GrpcCallOptions) {
    this.#host = options.host;
    this.connection = options.connection;
    this.stream = options.stream;
    this.streamsRequests = options.streamsRequests;
    this.path = options.path;
    this.fields = options.fields;
    this.encoding = options.encoding;
    this.deadlineAtMs = options.deadlineAtMs;
  }

  /** "package.Service/Method" */
  get name(): string {
    return this.path.slice(1);
  }

  // Of its stream.

  onData(piece: Buffer): void {
    this.#host.onPiece(this, piece.length);
    if (this.isOver) {
      return;
    }
    this.#reader.push(piece);
    if (this.#isAhead()) {
      this.stream.hold();
    }
    this.#more();
  }

  onEnd(): void {
    this.isWhole = true;
    this.#more();
  }

  onDrain(): void {
    const wake = this.#onDrain;
    this.#onDrain = ignore;
    wake();
  }

  onClose(): void {
    const onCancel = this.#onCancel;
    this.#onCancel = ignore;
    if (!this.isOver) {
      this.isOver = true;
      onCancel(this.isLate());
    }
    this.#onMore();
    this.onDrain();
    this.#host.onClose(this);
  }

  #more(): void {
    this.#host.onMore(this);
    this.#onMore();
  }

  // Of its request.

  /** Bytes that came and that no handler has taken. */
  get waitingBytes(): number {
    return this.#reader.waitingBytes;
  }

  /** Of the message that comes next; -1 while that is not known. */
  get nextMessageBytes(): number {
    return this.#reader.nextBytes;
  }

  /** A message is here. */
  get hasMessage(): boolean {
    return this.#reader.hasWhole;
  }

  takeMessage(): ReceivedMessage | undefined {
    const message = this.#reader.take();
    if (!this.#isAhead()) {
      this.stream.release();
    }
    return message;
  }

  /** Enough is here for the handler to go on with; of a message that is not whole the rest must come. */
  #isAhead(): boolean {
    return this.#reader.hasWhole && this.#reader.waitingBytes > READ_AHEAD_BYTES;
  }

  /** Calls back once more of the request has come, or none will. */
  onceMore(wake: () => void): void {
    this.#onMore = () => {
      this.#onMore = ignore;
      wake();
    };
  }

  isLate(): boolean {
    return performance.now() >= this.deadlineAtMs;
  }

  /** Calls back, once, if the call ends before its handler has ended it: its client gave up, or its time is over. */
  onCancelled(listener: (isLate: boolean) => void): void {
    const before = this.#onCancel;
    this.#onCancel =
      before === ignore
        ? listener
        : (isLate) => {
            before(isLate);
            listener(isLate);
          };
  }

  // Of its reply.

  /** The whole reply of a call with one. */
  reply(message: Uint8Array): void {
    if (!this.isOver) {
      this.isOver = true;
      this.stream.reply(REPLY_HEAD, prefixOf(message), message, OK_TRAILERS);
    }
  }

  /** Sends a stream's head: a client that waits must learn at once that the call is there. */
  begin(): void {
    if (!this.isOver) {
      this.#hasBegun = true;
      this.stream.sendHead(REPLY_HEAD);
    }
  }

  /** Sends one of a stream's replies; false: wait for {@link onceDrained}. */
  send(message: Uint8Array): boolean {
    if (this.isOver) {
      return true;
    }
    return this.stream.send(Buffer.concat([prefixOf(message), message]));
  }

  /** Calls back once the client has taken most of what was sent, or the call is over. */
  onceDrained(wake: () => void): void {
    this.#onDrain = wake;
  }

  /** Ends a stream of replies. */
  end(): void {
    if (!this.isOver) {
      this.isOver = true;
      this.stream.end(OK_TRAILERS);
    }
  }

  /** Ends it with a status that is not OK. */
  fail(status: GrpcStatus): void {
    if (!this.isOver) {
      this.isOver = true;
      this.stream.end(this.#hasBegun ? trailersOf(status) : statusOnly(status));
    }
  }

  /** The same, whatever its handler does: that hears of it. */
  cut(status: GrpcStatus): void {
    if (!this.isOver) {
      const onCancel = this.#onCancel;
      this.fail(status);
      onCancel(this.isLate());
      this.#onMore();
      this.onDrain();
    }
  }
}
