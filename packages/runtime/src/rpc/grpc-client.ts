import {
  create,
  type DescMessage,
  type DescMethod,
  type DescService,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { formatAddress, type NetworkAddress } from "../network-address.ts";
import { MAX_MESSAGE_BYTES } from "./grpc-server.ts";
import { ERROR_METADATA, fromStatus } from "./rpc-error.ts";

export interface GrpcChannelOptions {
  /** Tried in turn: a call that finds one of them unreachable goes to the next. */
  addresses: readonly NetworkAddress[];
  /** Ms of a call that gives no deadline of its own. Default 10,000; streams have none by default. */
  defaultTimeoutMs?: number;
}

export interface GrpcChannel {
  /** A typed client; failed calls throw ConnectError, see fromRpcError. */
  client<Service extends DescService>(service: Service): Client<Service>;
  close(): void;
}

const DEFAULT_TIMEOUT_MS = 10_000;

const CHANNEL_OPTIONS: grpc.ChannelOptions = {
  // grpc-js obeys http_proxy by itself; traffic inside the cluster never goes that way.
  "grpc.enable_http_proxy": 0,
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.min_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
};

type HeaderInit = ConstructorParameters<typeof Headers>[0];

function serializers(method: DescMethod) {
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    encode: (message: MessageShape<DescMessage>) => Buffer.from(toBinary(method.input, message)),
    decode: (bytes: Buffer) => fromBinary(method.output, bytes),
  };
}

/** grpc-js wraps the system's words in its own: "No connection established. Last error: Error: connect ECONNREFUSED ...". */
function plainMessage(text: string): string {
  const inner = /Last error: (?:Error: )?(.*?)\.? Resolution note:/.exec(text)?.[1];
  return inner === undefined ? text : inner === "null" ? "cannot be reached" : `cannot be reached: ${inner}`;
}

function toError(error: grpc.ServiceError): ConnectError {
  const [detail] = error.metadata?.get(ERROR_METADATA) ?? [];
  const bytes = detail instanceof Buffer ? detail : undefined;
  return fromStatus(error.code, plainMessage(error.details ?? error.message), bytes, error);
}

function metadataOf(header: HeaderInit | undefined): grpc.Metadata {
  const metadata = new grpc.Metadata();
  new Headers(header).forEach((value, key) => {
    metadata.set(key, value);
  });
  return metadata;
}

function callOptions(timeoutMs: number | undefined): grpc.CallOptions {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}

function cancelWith(call: { cancel(): void }, signal: AbortSignal | undefined): () => void {
  const cancel = () => call.cancel();
  if (signal?.aborted) {
    cancel();
  }
  signal?.addEventListener("abort", cancel);
  return () => signal?.removeEventListener("abort", cancel);
}

class GrpcTransport implements Transport {
  readonly #clients: grpc.Client[];
  readonly #defaultTimeoutMs: number;
  #current = 0;

  constructor(options: GrpcChannelOptions) {
    this.#clients = options.addresses.map(
      (address) => new grpc.Client(formatAddress(address), grpc.credentials.createInsecure(), CHANNEL_OPTIONS),
    );
    this.#defaultTimeoutMs = options.defaultTimeoutMs ?? DEFAULT_TIMEOUT_MS;
  }

  close(): void {
    for (const client of this.#clients) {
      client.close();
    }
  }

  unary: Transport["unary"] = async (method, signal, timeoutMs, header, input) => {
    const message = create(method.input, input);
    let failure: unknown;
    for (let attempt = 0; attempt < this.#clients.length; attempt++) {
      const at = this.#current;
      try {
        const reply = await this.#callUnary(at, method, signal, timeoutMs ?? this.#defaultTimeoutMs, header, message);
        return {
          stream: false,
          service: method.parent,
          method,
          header: new Headers(),
          trailer: new Headers(),
          message: reply,
        } as never;
      } catch (error) {
        failure = error;
        if (!(error instanceof ConnectError) || error.code !== Code.Unavailable) {
          throw error;
        }
        this.#current = (at + 1) % this.#clients.length;
      }
    }
    throw failure;
  };

  #callUnary(
    at: number,
    method: DescMethod,
    signal: AbortSignal | undefined,
    timeoutMs: number,
    header: HeaderInit | undefined,
    message: MessageShape<DescMessage>,
  ) {
    const { path, encode, decode } = serializers(method);
    return new Promise<MessageShape<DescMessage>>((resolve, reject) => {
      const call = this.#client(at).makeUnaryRequest(
        path,
        encode,
        decode,
        message,
        metadataOf(header),
        callOptions(timeoutMs),
        (error, reply) => {
          release();
          if (error !== null || reply === undefined) {
            reject(error === null ? new ConnectError("empty reply", Code.Internal) : toError(error));
          } else {
            resolve(reply);
          }
        },
      );
      const release = cancelWith(call, signal);
    });
  }

  stream: Transport["stream"] = async (method, signal, timeoutMs, header, input) => {
    const { path, encode, decode } = serializers(method);
    let request: MessageShape<DescMessage> = create(method.input);
    for await (const item of input) {
      request = create(method.input, item);
    }
    const call = this.#client(this.#current).makeServerStreamRequest(
      path,
      encode,
      decode,
      request,
      metadataOf(header),
      callOptions(timeoutMs),
    );
    const release = cancelWith(call, signal);
    async function* messages() {
      try {
        for await (const message of call) {
          yield message;
        }
      } catch (error) {
        throw toError(error as grpc.ServiceError);
      } finally {
        release();
        call.cancel();
      }
    }
    return {
      stream: true,
      service: method.parent,
      method,
      header: new Headers(),
      trailer: new Headers(),
      message: messages(),
    } as never;
  };

  #client(at: number): grpc.Client {
    const client = this.#clients[at];
    if (client === undefined) {
      throw new ConnectError("no address is given", Code.InvalidArgument);
    }
    return client;
  }
}

/** Opens channels; nothing is dialled before the first call. */
export function createGrpcChannel(options: GrpcChannelOptions): GrpcChannel {
  const transport = new GrpcTransport(options);
  return {
    client: (service) => createClient(service, transport),
    close: () => transport.close(),
  };
}
