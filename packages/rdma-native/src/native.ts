/**
 * The contract between TypeScript and the C++ addon: every native function, in the order of src/cpp/binding/module.cc.
 *
 * Handles are opaque: an object that only the addon can make, use and close. A closed handle raises `Closed` in every call.
 * Byte counts and offsets are `bigint`. Functions that return a promise do their work on native threads; all others
 * only touch memory or make one quick system call. Errors carry {@link NativeFault}; index.ts makes `NativeError` of them.
 */

declare const handleKind: unique symbol;

/** An object of the addon; `Kind` keeps handles of different kinds apart. */
export interface Handle<Kind extends string> {
  readonly [handleKind]: Kind;
}

/** The exclusive lock on a store's `lock` file. */
export type StoreLockHandle = Handle<"store-lock">;
/** Read-only access to a store's files for the agent and for descriptors given to pods. */
export type StoreViewHandle = Handle<"store-view">;
/** A process, by pidfd: cannot be confused with a later process of the same number. */
export type ProcessHandle = Handle<"process">;
/** The socket that hands descriptors to pods. */
export type DescriptorServerHandle = Handle<"descriptor-server">;
/** The listening socket of the local API. */
export type LocalListenerHandle = Handle<"local-listener">;
/** The threads that move bytes; one per mover process. */
export type MoverHandle = Handle<"mover">;

/** Digest algorithms of chunks. Layouts and objects are always SHA-256. */
export type DigestAlgorithm = "xxh3-128" | "sha-256";

/**
 * Stable codes of native faults, the same as the product's error codes; `Closed` is a use of a closed handle.
 */
export type NativeCode =
  | "NotFound"
  | "Unavailable"
  | "DeadlineExceeded"
  | "Refused"
  | "InvalidArgument"
  | "PermissionDenied"
  | "ResourceExhausted"
  | "Corrupt"
  | "InUse"
  | "AlreadyExists"
  | "Cancelled"
  | "Internal"
  | "Closed";

/** What a native error tells, beside its message. Absent text is empty. */
export interface NativeFault {
  code: NativeCode;
  /** A whole sentence for people. */
  message: string;
  /** What was wrong: a file, a tensor, an order's field. */
  field: string;
  value: string;
  limit: string;
  wayOut: string;
}

/** How well descriptors given to pods are protected: native.md rule 6. */
export type ProtectionLevel = "read-only mount" | "detached read-only mount" | "plain";

/** Who is at the other end of a Unix socket, as the kernel says. */
export interface PeerProcess {
  process: ProcessHandle;
  pid: number;
  uid: number;
  gid: number;
  /** Path of the process's cgroup (of version 2 where both exist; the longest one of version 1 otherwise); "" if unknown. */
  cgroup: string;
  /** "SO_PEERPIDFD" or "pidfd_open". */
  source: "SO_PEERPIDFD" | "pidfd_open";
}

/** A ticket that the descriptor server will honour once. */
export interface DescriptorGrant {
  /** 16 bytes. */
  ticketId: Uint8Array;
  /** 32 bytes. */
  secret: Uint8Array;
  /** Only this process may use it. */
  pid: number;
  ttlMs: number;
  /** 32 hex digits. */
  holdingId: string;
  /** Below the holding's folder, in the order in which they are sent: the layout's, then each segment's. */
  paths: string[];
}

/** Lets one process give descriptors for one offer, one at a time, until it is revoked. */
export interface OfferGrant {
  /** 16 bytes. */
  ticketId: Uint8Array;
  /** 32 bytes. */
  secret: Uint8Array;
  /** Only this process may use it. */
  pid: number;
  /** The caller's name for the offer: comes back in {@link GivenDescriptor}. */
  offer: string;
}

/** A descriptor that a process gave for an offer. The receiver owns it, and answers with `answerGiven`. */
export interface GivenDescriptor {
  connection: number;
  offer: string;
  what: "tensors" | "segment";
  /** Number of the segment; 0 for the list of tensors. */
  segment: number;
  /** Bytes that it says to have. */
  bytes: bigint;
  /** Open in this process; -1 when not exactly one descriptor came. */
  descriptor: number;
}

/** What the descriptor server did with one ticket or stranger, or what it was given. */
export interface DescriptorEvent {
  kind: "sent" | "refused" | "given";
  pid: number;
  /** Descriptors that were sent, or that came. */
  descriptors: number;
  /** Why; "" unless refused. */
  reason: string;
  /** Only of "given". */
  given?: GivenDescriptor;
}

/** A source file as it was when it was scanned; a load ends when the file is another by then. */
export interface SourceFile {
  /** Path of the segment within the holding: relative, `/`. */
  path: string;
  /** Absolute path that is read, links resolved. */
  source: string;
  bytes: bigint;
  mtimeNs: bigint;
  inode: bigint;
  device: bigint;
}

/** One data stream of a pull. */
export interface StreamTicket {
  /** 16 bytes. */
  id: Uint8Array;
  /** 32 bytes. */
  secret: Uint8Array;
}

/**
 * Orders to the mover. Every order may be given again: what is done already is found done. `id` is the caller's and
 * comes back in each report; a second order with the id of a running one is refused.
 */
export type MoverOrder =
  | ScanOrder
  | LoadOrder
  | ArrangeOrder
  | CopyOrder
  | FinishOrder
  | PullOrder
  | CheckOrder
  | RepairOrder
  | EvictOrder
  | GrantOrder
  | RevokeOrder
  | CancelOrder;

/** Reads a model's index and headers, checks all of it, and writes the layout into a new holding folder. */
export interface ScanOrder {
  kind: "scan";
  id: number;
  holdingId: string;
  /** Absolute path of a safetensors file, a model folder, or a Hugging Face cache folder. */
  path: string;
  /** Absolute; nothing outside it is read. */
  loadRoot: string;
  algorithm: DigestAlgorithm;
}

/** Copies the scanned files into the holding, digesting; goes on from the verified chunks. */
export interface LoadOrder {
  kind: "load";
  id: number;
  holdingId: string;
  files: SourceFile[];
  threads: number;
}

/** A sealed memfd that is open in the agent's process until the order has ended. */
export interface GivenMemory {
  /** The agent's process id. */
  agent: number;
  descriptor: number;
  bytes: bigint;
}

/** Reads the list of tensors of an offer, checks it, and writes the layout into a new holding folder. Reports as scan does. */
export interface ArrangeOrder {
  kind: "arrange";
  id: number;
  holdingId: string;
  memory: GivenMemory;
  algorithm: DigestAlgorithm;
}

/** Copies one segment of an offer into the holding, digesting; goes on from the verified chunks. */
export interface CopyOrder {
  kind: "copy";
  id: number;
  holdingId: string;
  segment: number;
  memory: GivenMemory;
  threads: number;
}

/** Completes a holding whose segments were copied one by one; InvalidArgument while chunks are missing. */
export interface FinishOrder {
  kind: "finish";
  id: number;
  holdingId: string;
}

/** Receives the missing chunks from one peer; goes on from the verified ones. */
export interface PullOrder {
  kind: "pull";
  id: number;
  holdingId: string;
  /** The holding to read at the peer. */
  parentHoldingId: string;
  /** host:port of the peer's mover. */
  endpoint: string;
  /** One stream each. */
  tickets: StreamTicket[];
  /** SHA-256, 32 bytes: the layout is fetched by it when the holding has none. */
  layoutDigest: Uint8Array;
  /** Bytes that the peer's agent announced and for which memory was reserved; a layout that says otherwise is refused. */
  layoutBytes: bigint;
  totalBytes: bigint;
  /** The peer's object digest, or empty when it was not complete yet. */
  objectDigest: Uint8Array;
  /** Ms without a chunk and without a "waiting" word until the peer counts as dead. */
  stallMs: number;
}

/** Proves a holding's bytes. */
export interface CheckOrder {
  kind: "check";
  id: number;
  holdingId: string;
  /** Believe the files of a holding whose immutable flags are all set, and read nothing. */
  trustFlag: boolean;
  /** Digest only these chunks; empty: all verified ones. */
  chunks: bigint[];
  /** Compare with this object digest; empty: compute it only. */
  objectDigest: Uint8Array;
}

/** Takes the flag off a damaged holding and unmarks its wrong chunks, so that a pull or load fills them again. */
export interface RepairOrder {
  kind: "repair";
  id: number;
  holdingId: string;
}

/** Deletes a holding once nobody has its files open or mapped. */
export interface EvictOrder {
  kind: "evict";
  id: number;
  holdingId: string;
  /** Answer `InUse` at once when somebody has it mapped, and change nothing; else wait for the last user. */
  onlyIfFree: boolean;
}

/** Lets one peer open one stream, once. */
export interface GrantOrder {
  kind: "grant";
  id: number;
  holdingId: string;
  ticket: StreamTicket;
  ttlMs: number;
  /** Name of the child, for reports. */
  child: string;
}

/** Closes the streams that read a holding and forgets its tickets. */
export interface RevokeOrder {
  kind: "revoke";
  id: number;
  holdingId: string;
}

/** Ends a running order within 100 ms; it reports `Cancelled`. */
export interface CancelOrder {
  kind: "cancel";
  id: number;
  orderId: number;
}

/** How long threads waited, by cause, in seconds summed over a transfer's streams. */
export interface WaitTimes {
  /** The parent said that it waits itself. */
  parentSeconds: number;
  /** Nothing came on the wire. */
  wireSeconds: number;
  /** Digesting. */
  verifySeconds: number;
  /** Writing and allocating. */
  storeSeconds: number;
}

/** Reports of the mover: at most one in 50 ms per order, and one at its end. */
export interface MoverReport {
  /** The order's id; 0 for {@link ServeReport} and {@link DamageReport}. */
  id: number;
  kind: "progress" | "done" | "failed" | "served" | "damage";
  holdingId: string;
  verifiedBytes: bigint;
  totalBytes: bigint;
  /** Bytes that came over the network in this order, refused ones included. */
  networkBytes: bigint;
  /** Bytes read from source files or from the holding's own files in this order. */
  readBytes: bigint;
  verifiedChunks: bigint;
  refusedChunks: bigint;
  waits: WaitTimes;
  /** Only in "done" of scan and arrange. */
  scanned?: ScanResult;
  /** "done" of load, finish, pull, check: SHA-256 of the object, 32 bytes. */
  objectDigest?: Uint8Array;
  /** "done" of check, "damage": numbers of chunks that are wrong. */
  wrongChunks?: bigint[];
  /** "done" of evict. */
  freedBytes?: bigint;
  /** "served": bytes and chunks sent since the last such report. */
  sentBytes?: bigint;
  sentChunks?: bigint;
  /** "served": the child's name. */
  child?: string;
  /** "failed". */
  fault?: NativeFault;
  /** "failed" of pull: the peer sent bytes or a layout that are not what it announced; never ask it again for this object. */
  distrustPeer?: boolean;
}

/** What a scan found. */
export interface ScanResult {
  kind: "files" | "tensors";
  layoutDigest: Uint8Array;
  layoutBytes: bigint;
  totalBytes: bigint;
  chunkBytes: number;
  itemCount: bigint;
  /** Of kind `files`: one for each segment. */
  files: SourceFile[];
  ignoredFiles: string[];
  warnings: string[];
  /** Tensors in indexed shards that the index gives to another shard, or to none. */
  extraTensors: bigint;
  /** The 40-hex name of the Hugging Face snapshot, or "". */
  snapshotRevision: string;
}

export interface MoverOptions {
  /** The store's folder. */
  store: string;
  /** Addresses to listen on, tried in order: the first that the kernel has wins. */
  bind: string[];
  /** 0: any free port. */
  port: number;
}

export interface BuildInfo {
  /** "release" or "sanitizer". */
  build: string;
  /** Versions of the stream protocol that this mover speaks. */
  minStreamVersion: number;
  maxStreamVersion: number;
  /** Version of the layout format. */
  layoutVersion: number;
}

/** All native functions. */
export interface NativeModule {
  /** What was built. */
  buildInfo(): BuildInfo;

  // Digests

  /** Digest of bytes in memory, on the calling thread: for small data. */
  digest(algorithm: DigestAlgorithm, data: Uint8Array): Uint8Array;
  /** Digest of `bytes` bytes of a file from `offset` on, streamed on a native thread. Fails with `Corrupt` when the file ends before. */
  digestFile(algorithm: DigestAlgorithm, path: string, offset: bigint, bytes: bigint): Promise<Uint8Array>;

  // Layouts

  /**
   * Decodes a layout with all its checks, and encodes what it says again: the same bytes, for every valid layout. Throws
   * Corrupt naming column and row, Refused for another version. For tools and tests.
   */
  recodeLayout(layout: Uint8Array): Uint8Array;

  // The store, from the agent's side

  /** Takes the exclusive lock, waiting up to `waitMs` for its holder; `InUse` names the holder's pid. */
  lockStore(path: string, waitMs: number): Promise<StoreLockHandle>;
  /** The lock's descriptor, for the mover's `stdio`. Valid until unlockStore. */
  storeLockDescriptor(lock: StoreLockHandle): number;
  /** Closes the descriptor; the lock itself lives on while a mover has it. Idempotent. */
  unlockStore(lock: StoreLockHandle): void;
  /**
   * Opens the store read-only. `readOnlyMount` is a folder where the same store is mounted read-only, or "".
   * Without one a detached read-only mount is made where the kernel and the rights allow it.
   */
  openStoreView(store: string, readOnlyMount: string): Promise<StoreViewHandle>;
  storeViewLevel(view: StoreViewHandle): ProtectionLevel;
  closeStoreView(view: StoreViewHandle): void;

  // Processes

  /** Who is at the other end of a connected Unix socket. `descriptor` stays the caller's. */
  peerProcess(descriptor: number): PeerProcess;
  /** The process with this number now, for processes that are not at a socket. */
  openProcess(pid: number): PeerProcess;
  /** False once the process has ended. */
  processAlive(process: ProcessHandle): boolean;
  /** Calls back once, on the JavaScript thread, when the process has ended; at once if it has already. */
  watchProcess(process: ProcessHandle, onEnd: () => void): void;
  /** Stops watching and closes the pidfd. Idempotent. */
  closeProcess(process: ProcessHandle): void;

  // Descriptors for pods

  /**
   * Listens on `path` (SOCK_SEQPACKET, mode 0666) on a native thread. An old socket file there is replaced; the caller has
   * made sure that no live server has it.
   */
  createDescriptorServer(
    path: string,
    view: StoreViewHandle,
    onEvent: (event: DescriptorEvent) => void,
  ): DescriptorServerHandle;
  grantDescriptors(server: DescriptorServerHandle, grant: DescriptorGrant): void;
  /** Forgets every unused ticket of a holding. */
  revokeDescriptors(server: DescriptorServerHandle, holdingId: string): void;
  grantOffer(server: DescriptorServerHandle, grant: OfferGrant): void;
  /** Forgets an offer's ticket. */
  revokeOffer(server: DescriptorServerHandle, offer: string): void;
  /**
   * Accepts a memfd of exactly `bytes` bytes that are all there, and seals it (native.md, rule 6). Refused says what it is
   * instead. Never waits for another process.
   */
  sealMemory(descriptor: number, bytes: bigint): Promise<void>;
  /**
   * Answers what came on a connection: one message of `text`, with the layout of a holding when `layoutOf` names one.
   * Nothing happens when the giver has left.
   */
  answerGiven(server: DescriptorServerHandle, connection: number, text: string, layoutOf: string): void;
  /** Closes a given descriptor that was refused: on a thread that may wait for the file system behind it. */
  discardGiven(server: DescriptorServerHandle, descriptor: number): void;
  /** Stops the thread, closes and unlinks the socket. Idempotent. */
  closeDescriptorServer(server: DescriptorServerHandle): void;

  // The mover's side

  /** First call of a mover process: it dies with `parentPid`'s main thread, and at once if that is gone already. */
  dieWithParent(parentPid: number): void;
  /** Starts the threads and listens. Reports come on the JavaScript thread. */
  createMover(options: MoverOptions, onReport: (report: MoverReport) => void): MoverHandle;
  /** Address that the stream transport listens on, e.g. "[::]:6755". */
  moverAddress(mover: MoverHandle): string;
  /** Takes an order; what is wrong with it comes as a "failed" report. */
  moverOrder(mover: MoverHandle, order: MoverOrder): void;
  /** Cancels what runs and joins all threads. Idempotent. */
  closeMover(mover: MoverHandle): void;

  // The local API's socket

  /**
   * Listens on `path` (SOCK_STREAM, mode 0666) on a native thread. An old socket file there is replaced; the caller has made
   * sure that no live server has it. Each connection's descriptor is the callee's to close; they come on the JavaScript
   * thread, callers by turns, two at most in a turn of the event loop. Those that were left meanwhile do not come.
   */
  createLocalListener(path: string, onConnection: (descriptor: number) => void): LocalListenerHandle;
  /**
   * Hands over no connection of a process (in a pod: of its container) for `holdMs` milliseconds from now; those that are on
   * their way still come. What waits meanwhile is bounded as ever.
   */
  holdLocalCaller(listener: LocalListenerHandle, pid: number, holdMs: number): void;
  /** Stops the thread, closes and unlinks the socket, and closes what was not taken. Idempotent. */
  closeLocalListener(listener: LocalListenerHandle): void;
}
