/**
 * What went wrong with a backend, in a few fixed words: `timeout` no answer in time, `connection` lost or never had,
 * `read_only` a replica where a primary was, `full` no memory for writes, `loading` it is starting, `wrong_type` a key holds
 * something else, `denied` it refused us, `other` all else.
 */
export const BACKEND_ERROR_KINDS = [
  "timeout",
  "connection",
  "read_only",
  "full",
  "loading",
  "wrong_type",
  "denied",
  "other",
] as const;
export type BackendErrorKind = (typeof BACKEND_ERROR_KINDS)[number];

/** Told by a directory of what happens between it and its backend. A directory without a backend tells nothing. */
export interface DirectoryObserver {
  /** A request to the backend failed. */
  failed(kind: BackendErrorKind): void;
  /** A connection that was lost is there again. */
  reconnected(): void;
}
