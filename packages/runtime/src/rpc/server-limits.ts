const MEBIBYTE = 1024 * 1024;

/** contract.md: 100 MiB both ways. */
export const MAX_MESSAGE_BYTES = 100 * MEBIBYTE;
/** The same of a message that comes compressed, unpacked: a few bytes could stand for all of the other limit. */
export const COMPRESSED_MESSAGE_MAX_BYTES = 4 * MEBIBYTE;
/** Of a request's headers, names and values with 32 bytes for each pair, as HTTP/2 counts them. */
export const HEADER_BLOCK_MAX_BYTES = 65_535;
/** Pairs of a request's headers. */
export const HEADER_PAIRS_MAX_COUNT = 128;
/** Values of a request's message, nested ones too: what a few bytes each would become in memory. */
export const MESSAGE_VALUES_MAX_COUNT = 100_000;
/** Of these, values of fields that this version does not know: a message with more of them loses them. */
export const UNKNOWN_VALUES_MAX_COUNT = 10_000;

/** Calls that a client may give up in one go, and then in a second; above, its connection ends. */
export const RESET_BURST_COUNT = 128;
export const RESETS_PER_S = 33;

/** What one server bears, and what one address may take of it. */
export interface ServerLimits {
  /** Connections of one address: many clients may share one behind a load balancer. */
  connectionsPerAddressCount: number;
  /** Connections of all addresses. */
  connectionsCount: number;
  /** Calls that run at once on one connection: so many can come in one piece, for which all others wait. */
  streamsPerConnectionCount: number;
  /** Calls of one address that start in one turn of the event loop, if others make calls too. */
  callsPerTurnCount: number;
  /** Bytes of requests that are read and of replies that are not taken yet, of one address. */
  bytesPerAddress: number;
  /** The same of all addresses. */
  bytesInAll: number;
  /** A connection that has not begun to speak HTTP/2 by then ends. */
  silentConnectionMs: number;
  /** A call of whose request nothing came for so long ends, and one whose client took nothing of its reply. */
  stalledCallMs: number;
  /** A connection is asked for a sign of life so often; any traffic of the client's own is left to its keepalive. */
  keepaliveIntervalMs: number;
  /** It ends when the sign does not come within so long. */
  keepaliveTimeoutMs: number;
}

export const SERVER_LIMITS: Readonly<ServerLimits> = {
  connectionsPerAddressCount: 1024,
  connectionsCount: 16_384,
  streamsPerConnectionCount: 32,
  callsPerTurnCount: 2,
  bytesPerAddress: 256 * MEBIBYTE,
  bytesInAll: 1024 * MEBIBYTE,
  silentConnectionMs: 10_000,
  stalledCallMs: 30_000,
  keepaliveIntervalMs: 60_000,
  keepaliveTimeoutMs: 20_000,
};

/** Which limit ended a connection or a call. */
export type LimitReason =
  | "connections-per-address"
  | "connections"
  | "silent-connection"
  | "bytes-per-address"
  | "bytes"
  | "stalled-request"
  | "stalled-reply";

/** Told of each connection and call that a limit ended; `address` is its peer's, without a port. */
export type OnLimit = (reason: LimitReason, address: string) => void;
