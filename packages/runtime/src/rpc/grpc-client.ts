import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient } from "@connectrpc/connect";
import type { NetworkAddress } from "../network-address.ts";
import type { ChannelTls } from "../security/certificates.ts";
import { createGrpcTransport } from "./grpc-transport.ts";

export interface GrpcChannelOptions {
  /**
   * Tried in turn: a call that finds one of them unreachable goes to the next, and the one that answered is asked first from
   * then on. A stream does so until its first message.
   */
  addresses: readonly NetworkAddress[];
  /** Ms of a call that gives no deadline of its own. Default 10,000; streams have none by default. */
  defaultTimeoutMs?: number;
  /** Undefined: plain connections. */
  tls?: ChannelTls | undefined;
  /** Goes with every call. Secret; only with `tls`. */
  token?: string | undefined;
}

export interface GrpcChannel {
  /**
   * A typed client of all methods but those with one reply to a stream; failed calls throw ConnectError, see fromRpcError. What
   * a stream sends before its first reply may go to several addresses, one after another.
   */
  client<Service extends DescService>(service: Service): Client<Service>;
  close(): void;
}

const DEFAULT_TIMEOUT_MS = 10_000;

/** Opens channels; nothing is dialled before the first call. */
export function createGrpcChannel({ addresses, defaultTimeoutMs, tls, token }: GrpcChannelOptions): GrpcChannel {
  const { transport, close } = createGrpcTransport(addresses, defaultTimeoutMs ?? DEFAULT_TIMEOUT_MS, { tls, token });
  return { client: (service) => createClient(service, transport), close };
}
