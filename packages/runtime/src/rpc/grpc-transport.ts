import type { PeerCertificate } from "node:tls";
import { create, type DescMessage, type DescMethod, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { WeightlineError } from "../error.ts";
import { formatAddress, type NetworkAddress } from "../network-address.ts";
import type { ChannelTls } from "../security/certificates.ts";
import { plainTlsWords } from "../security/tls-words.ts";
import { streamsOf } from "./grpc-handlers.ts";
import { type HeaderInit, toMetadata } from "./grpc-metadata.ts";
import { type ClientUse, createRenewedClient, type RenewedClient } from "./renewed-client.ts";
import { RequestStream } from "./request-stream.ts";
import { ERROR_METADATA, fromStatus, REQUEST_ID_METADATA } from "./rpc-error.ts";
import { MAX_MESSAGE_BYTES } from "./server-limits.ts";

type Message = MessageShape<DescMessage>;

/** Where there is another address to ask, a connection gets so long; the whole deadline otherwise. */
const CONNECT_TIMEOUT_MS = 500;

const CHANNEL_OPTIONS: grpc.ChannelOptions = {
  // grpc-js obeys http_proxy by itself; traffic inside the cluster never goes that way.
  "grpc.enable_http_proxy": 0,
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.min_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000,
  // A frozen server's kernel goes on acknowledging: only pings, also between calls, show that nobody is there. The name is
  // resolved again then, at once.
  "grpc.keepalive_time_ms": 5000,
  "grpc.keepalive_timeout_ms": 5000,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc.dns_min_time_between_resolutions_ms": 1000,
  "grpc.service_config_disable_resolution": 1,
};

/** grpc-js wraps the system's words in its own: "No connection established. Last error: Error: connect ECONNREFUSED ...". */
function plainMessage(text: string): string {
  const inner = /Last error: (?:Error: )?(.*?)\.? Resolution note:/s.exec(text)?.[1];
  return inner === undefined
    ? text
    : inner === "null"
      ? "cannot be reached"
      : `cannot be reached: ${plainTlsWords(inner)}`;
}

/** Server names are not addresses, and peers are known by what their certificates name: all are asked for by this one. */
const SERVER_NAME = "weightline";

function credentialsOf(tls: ChannelTls | undefined): [grpc.ChannelCredentials, grpc.ChannelOptions] {
  if (tls === undefined) {
    return [grpc.credentials.createInsecure(), CHANNEL_OPTIONS];
  }
  const checkServerIdentity = (_name: string, certificate: PeerCertificate) => tls.checkPeer(certificate);
  return [
    grpc.credentials.createFromSecureContext(tls.context, { checkServerIdentity }),
    { ...CHANNEL_OPTIONS, "grpc.ssl_target_name_override": SERVER_NAME },
  ];
}

function toError(error: grpc.ServiceError): ConnectError {
  const [detail] = error.metadata?.get(ERROR_METADATA) ?? [];
  const bytes = detail instanceof Buffer ? detail : undefined;
  const [requestId] = error.metadata?.get(REQUEST_ID_METADATA) ?? [];
  return fromStatus(error.code, plainMessage(error.details ?? error.message), bytes, String(requestId ?? ""), error);
}

/** One call of a method, wherever it goes. */
interface Attempt {
  method: DescMethod;
  /** Its only one, or what it streams. */
  message: Message | RequestStream;
  metadata: grpc.Metadata;
  signal: AbortSignal | undefined;
  /** On the monotonic clock; Infinity for none. */
  deadlineMs: number;
}

/** Another attempt may do better: nobody was there. */
function isUnreachable(error: unknown): boolean {
  return error instanceof ConnectError && error.code === Code.Unavailable;
}

/** One address, with the channel to it. */
class Target {
  readonly #address: string;
  readonly #clients: RenewedClient;
  /** Undefined: a connection may take the whole deadline. */
  readonly #connectTimeoutMs: number | undefined;

  constructor(address: NetworkAddress, connectTimeoutMs: number | undefined, tls: ChannelTls | undefined) {
    this.#address = formatAddress(address);
    const parameters = credentialsOf(tls);
    this.#clients = createRenewedClient(() => new grpc.Client(this.#address, ...parameters));
    this.#connectTimeoutMs = connectTimeoutMs;
  }

  close(): void {
    this.#clients.close();
  }

  unary(attempt: Attempt): Promise<Message> {
    return new Promise((resolve, reject) => {
      const use = this.#clients.take();
      const message = attempt.message as Message;
      const parameters = this.#parameters(attempt);
      const call = use.client.makeUnaryRequest(...parameters.how, message, ...parameters.with, (error, reply) => {
        release();
        if (reply !== undefined && error === null) {
          resolve(reply);
        } else {
          reject(error === null ? new ConnectError("empty reply", Code.Internal) : (late() ?? toError(error)));
        }
      });
      const { late, release } = this.#watch(use, call, attempt.signal);
    });
  }

  async *stream(attempt: Attempt): AsyncGenerator<Message> {
    const use = this.#clients.take();
    const call = this.#openStream(use.client, attempt);
    const { late, release } = this.#watch(use, call, attempt.signal);
    try {
      for await (const message of call) {
        yield message;
      }
    } catch (error) {
      throw late() ?? toError(error as grpc.ServiceError);
    } finally {
      release();
      call.cancel();
    }
  }

  #openStream(client: grpc.Client, attempt: Attempt) {
    const { message } = attempt;
    const parameters = this.#parameters(attempt);
    if (message instanceof RequestStream) {
      const call = client.makeBidiStreamRequest(...parameters.how, ...parameters.with);
      message.sendTo(call);
      return call;
    }
    return client.makeServerStreamRequest(...parameters.how, message, ...parameters.with);
  }

  #parameters({ method, metadata, deadlineMs }: Attempt) {
    const leftMs = deadlineMs - performance.now();
    const options: grpc.CallOptions = Number.isFinite(leftMs) ? { deadline: Date.now() + Math.max(0, leftMs) } : {};
    return {
      how: [
        `/${method.parent.typeName}/${method.name}`,
        (request: Message) => Buffer.from(toBinary(method.input, request)),
        (bytes: Buffer) => fromBinary(method.output, bytes),
      ],
      with: [metadata, options],
    } as const;
  }

  /** Cancels the call by its caller's signal, or when its connection does not come. */
  #watch({ client, end }: ClientUse, call: { cancel(): void }, signal: AbortSignal | undefined) {
    let error: ConnectError | undefined;
    const cancel = () => {
      // Who aborts a call for a reason of its own gets it back, and what it says of the address is heeded.
      error ??= signal?.reason instanceof ConnectError ? signal.reason : undefined;
      call.cancel();
    };
    if (signal?.aborted) {
      cancel();
    }
    signal?.addEventListener("abort", cancel);
    const expire = () => {
      if (client.getChannel().getConnectivityState(false) !== grpc.connectivityState.READY) {
        const words = `cannot be reached: ${this.#address} does not answer within ${this.#connectTimeoutMs} ms`;
        error = new ConnectError(words, Code.Unavailable);
        cancel();
      }
    };
    const timer = this.#connectTimeoutMs === undefined ? undefined : setTimeout(expire, this.#connectTimeoutMs);
    return {
      /** Why the call was given up, if that was for want of a connection or its caller said so. */
      late: () => error,
      release() {
        clearTimeout(timer);
        signal?.removeEventListener("abort", cancel);
        end();
      },
    };
  }
}

/** Several addresses of one service, and which of them is asked first. */
class Targets {
  readonly #all: Target[];
  #first = 0;

  constructor(addresses: readonly NetworkAddress[], tls: ChannelTls | undefined) {
    if (addresses.length === 0) {
      throw new WeightlineError("InvalidArgument", "no address is given", { wayOut: "give host:port" });
    }
    const connectTimeoutMs = addresses.length > 1 ? CONNECT_TIMEOUT_MS : undefined;
    this.#all = addresses.map((address) => new Target(address, connectTimeoutMs, tls));
  }

  /** Each of them once, the one that answered last first. */
  *inTurn(): Generator<Target> {
    const start = this.#first;
    for (let step = 0; step < this.#all.length; step++) {
      yield this.#all[(start + step) % this.#all.length] as Target;
    }
  }

  /** The next is asked first from now on: this one is away, or holds calls without answering. */
  passOver(target: Target): void {
    if (this.#all[this.#first] === target) {
      this.#first = (this.#first + 1) % this.#all.length;
    }
  }

  close(): void {
    for (const target of this.#all) {
      target.close();
    }
  }
}

/** True: the next target may be asked. */
function goesOn(targets: Targets, target: Target, error: unknown, { deadlineMs }: Attempt): boolean {
  const silent = error instanceof ConnectError && error.code === Code.DeadlineExceeded;
  if (silent || isUnreachable(error)) {
    targets.passOver(target);
  }
  return isUnreachable(error) && performance.now() < deadlineMs;
}

async function callUnary(targets: Targets, attempt: Attempt): Promise<Message> {
  let failure: unknown;
  for (const target of targets.inTurn()) {
    try {
      return await target.unary(attempt);
    } catch (error) {
      failure = error;
      if (!goesOn(targets, target, error, attempt)) {
        break;
      }
    }
  }
  throw failure;
}

async function* callStream(targets: Targets, attempt: Attempt): AsyncGenerator<Message> {
  const requests = attempt.message instanceof RequestStream ? attempt.message : undefined;
  let failure: unknown;
  try {
    for (const target of targets.inTurn()) {
      let begun = false;
      try {
        for await (const message of target.stream(attempt)) {
          begun = true;
          requests?.settle();
          yield message;
        }
        return;
      } catch (error) {
        failure = error;
        if (!goesOn(targets, target, error, attempt) || begun) {
          break;
        }
      }
    }
  } finally {
    requests?.end();
  }
  throw failure;
}

function attemptOf(
  method: DescMethod,
  signal: AbortSignal | undefined,
  timeoutMs: number | undefined,
  metadata: grpc.Metadata,
  input: Message | RequestStream,
): Attempt {
  const deadlineMs = timeoutMs === undefined ? Number.POSITIVE_INFINITY : performance.now() + timeoutMs;
  return { method, message: input, metadata, signal, deadlineMs };
}

/** What a method with a stream of replies is sent: its one message, or all of a stream. */
async function messagesOf(method: DescMethod, input: AsyncIterable<unknown>): Promise<Message | RequestStream> {
  const { requestStream, responseStream } = streamsOf(method);
  if (requestStream && responseStream) {
    return new RequestStream(method, input);
  }
  if (requestStream) {
    throw new ConnectError(`${method.name} has one reply to a stream, which this client does not send`, Code.Internal);
  }
  let message: Message = create(method.input);
  for await (const item of input) {
    message = create(method.input, item as Message);
  }
  return message;
}

/** Connect's transport over grpc-js channels. */
export function createGrpcTransport(
  addresses: readonly NetworkAddress[],
  defaultTimeoutMs: number,
  { tls, token }: { tls: ChannelTls | undefined; token: string | undefined },
): { transport: Transport; close(): void } {
  const targets = new Targets(addresses, tls);
  const metadataOf = (header: HeaderInit) => {
    const metadata = toMetadata(header);
    if (token !== undefined) {
      metadata.set("authorization", `Bearer ${token}`);
    }
    return metadata;
  };
  const reply = (method: DescMethod) => ({
    service: method.parent,
    method,
    header: new Headers(),
    trailer: new Headers(),
  });
  const transport: Transport = {
    async unary(method, signal, timeoutMs, header, input) {
      const attempt = attemptOf(
        method,
        signal,
        timeoutMs ?? defaultTimeoutMs,
        metadataOf(header),
        create(method.input, input),
      );
      return { ...reply(method), stream: false, message: await callUnary(targets, attempt) } as never;
    },
    async stream(method, signal, timeoutMs, header, input) {
      const attempt = attemptOf(method, signal, timeoutMs, metadataOf(header), await messagesOf(method, input));
      return { ...reply(method), stream: true, message: callStream(targets, attempt) } as never;
    },
  };
  return { transport, close: () => targets.close() };
}
