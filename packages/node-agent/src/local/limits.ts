/** Limits of the local API. Caps count per pod: all containers and processes of one together; outside pods per process. */

/** One request message (manifests come by descriptor). */
export const MESSAGE_MAX_BYTES = 4 * 1024 * 1024;
/** At the cap the oldest silent connection is closed; where all are busy the newcomer is turned away. */
export const POD_CONNECTIONS_MAX = 16;
/** Calls whose answer is not sent yet. HTTP/1.1 pipelining reaches it on few connections. */
export const POD_CALLS_MAX = 64;
/** Refused calls in a row after which a connection is closed. */
export const REFUSALS_MAX = 16;
/** Fills that a pod's calls began and that still run, whether it waits for them or not. */
export const POD_FILLS_MAX = 64;
/** Offers that a pod fills at once. */
export const POD_OFFERS_MAX = 8;
/** Offers of all pods: each may have a connection at the descriptor socket that waits for its answer. */
export const OFFERS_MAX = 48;
export const POD_LEASES_MAX = 4096;
/** Leases of stock peers' reads, of all peers together: nobody knows one from another. */
export const TIMED_LEASES_MAX = 4096;
/** Processes of one pod that have leases: each costs the agent two descriptors. */
export const POD_LEASE_PROCESSES_MAX = 256;
/** Tickets for descriptors that were not used yet; the descriptor server has 4096 for all. */
export const POD_TICKETS_MAX = 256;
/** Connections of all; beyond, one of the largest group goes. */
export const CONNECTIONS_MAX = 1024;
/** A source identity, encoded: what is larger could not be announced. */
export const IDENTITY_MAX_BYTES = 64 * 1024;
/** One name: of a model, of a revision. */
export const NAME_MAX_BYTES = 512;
/** A request must have come whole within this time of its connection's or its predecessor's end. */
export const REQUEST_TIMEOUT_MS = 10_000;
/** A connection that had an answer may be silent for so long. */
export const KEEP_ALIVE_MS = 72_000;
/** Answers that wait for their reader, of one connection. */
export const WAITING_MAX_BYTES = 8 * 1024 * 1024;
/**
 * A reader that takes nothing for so long, while some wait, is gone. The kernel lets the agent write on when three quarters
 * of what it holds are read (150 KiB of 208): so much is asked in this time.
 */
export const DRAIN_TIMEOUT_MS = 5000;
/** How often connections are looked at for both. */
export const SWEEP_INTERVAL_MS = 1000;
/** How long a connection that is turned away may read why. */
export const FAREWELL_MS = 1000;
