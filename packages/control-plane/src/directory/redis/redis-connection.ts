import { createBoundedLog, type Logger, WeightlineError } from "@weightline/runtime";
import { type RedisOptions as AllRedisOptions, Cluster, Redis } from "ioredis";
import type { Clock } from "../directory.ts";
import type { BackendErrorKind, DirectoryObserver } from "../directory-observer.ts";
import { createCommandDeadlines } from "./command-deadlines.ts";
import { joinWrites } from "./joined-writes.ts";
import { keyTypes, type Touched } from "./key-types.ts";
import { describeRedis, type RedisAddress } from "./redis-address.ts";
import { createRedisClock, type RedisClock } from "./redis-clock.ts";
import { SCRIPT_NAMES, type ScriptName, scriptText } from "./scripts.ts";

/** The options without the one that changes the form of replies: they are read in the old form. */
type RedisOptions = Omit<AllRedisOptions, "replyMapping">;

export interface RedisConnectionOptions {
  address: RedisAddress;
  /** PEM of the authority of Redis's certificate; undefined: the system's. */
  ca: string | undefined;
  /** How long one command may take, in ms. */
  timeoutMs: number;
  clock: Clock;
  observer: DirectoryObserver;
  log: Logger;
}

/** A value that a script returns. */
export type ScriptReply = string | Buffer | null | ScriptReply[];

export interface RedisConnection {
  /** What every key begins with. */
  readonly prefix: string;
  readonly clock: RedisClock;
  /** Grows with each new connection: what was read over an older one may have been lost by a failover since. */
  readonly generation: number;
  /** Resolves when it is connected, or after CONNECT_TIMEOUT_MS. */
  readonly firstReady: Promise<void>;
  /**
   * Runs a script; the first of its reply is Redis's time. Rejects with Unavailable within the timeout. A key among those
   * that it touches which somebody gave another type is removed first, as if Redis had lost it.
   */
  run(
    script: ScriptName,
    args: (string | number | Buffer)[],
    touched: Touched,
    form?: "text" | "bytes",
  ): Promise<ScriptReply[]>;
  /** Rejects with Unavailable unless Redis takes writes. */
  checkWritable(): Promise<void>;
  /** Plain reads that no script is needed for. */
  members(key: string): Promise<string[]>;
  hashes(keys: string[]): Promise<Record<string, string>[]>;
  counts(keys: string[]): Promise<number[]>;
  close(): void;
}

const RECONNECT_FIRST_MS = 50;
const RECONNECT_MAX_MS = 1000;
const CONNECT_TIMEOUT_MS = 3000;
/** A connection on which nothing has come for so long is dead; the health check speaks every second. */
const SILENCE_MAX_MS = 5000;
const HEALTH_TTL_MS = 60_000;
/** Keys asked for at once where many are read. */
const PAGE = 500;

const KINDS: readonly [RegExp, BackendErrorKind][] = [
  [/timed out/i, "timeout"],
  [/READONLY/, "read_only"],
  [/OOM command not allowed/, "full"],
  [/WRONGTYPE/, "wrong_type"],
  [/LOADING|MASTERDOWN/, "loading"],
  [/NOAUTH|WRONGPASS|NOPERM|invalid username-password|can't run this command/, "denied"],
  [
    /closed|ECONN|EPIPE|ENOENT|enableOfflineQueue|max retries|not connected|getaddrinfo|CLUSTERDOWN|slots|sentinel/i,
    "connection",
  ],
];

function kindOf(error: Error): BackendErrorKind {
  return KINDS.find(([pattern]) => pattern.test(error.message))?.[1] ?? "other";
}

const WORDS: Readonly<Record<BackendErrorKind, string>> = {
  timeout: "did not answer in time",
  connection: "is not connected",
  read_only: "is a read-only replica",
  full: "is full and takes no writes",
  wrong_type: "holds something else under a key of this directory",
  loading: "is starting and not ready",
  denied: "refuses this user or password",
  other: "refused a command",
};

export function createRedisConnection(options: RedisConnectionOptions): RedisConnection {
  const { address, clock: time, observer, log } = options;
  const name = describeRedis(address);
  const bounded = createBoundedLog(log);
  const clock = createRedisClock(time.unixMs, time.monotonicMs);
  const prefix = address.kind === "cluster" ? "{mx}:" : "mx:";
  let generation = 0;
  let connected: boolean | undefined;

  const common = {
    connectTimeout: CONNECT_TIMEOUT_MS,
    socketTimeout: SILENCE_MAX_MS,
    maxRetriesPerRequest: 1,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    // It asks for INFO, which a user of the directory need not have; a Redis that is loading says so by itself.
    enableReadyCheck: false,
    protocol: 2,
    db: address.database,
    ...(address.username === undefined ? {} : { username: address.username }),
    ...(address.password === undefined ? {} : { password: address.password }),
    ...(address.tls ? { tls: options.ca === undefined ? {} : { ca: options.ca } } : {}),
    // A primary that became a replica keeps its connections: only a new one finds the new primary.
    reconnectOnError: (error: Error) => /READONLY/.test(error.message),
  } satisfies RedisOptions;
  const delay = (times: number) => Math.min(RECONNECT_MAX_MS, RECONNECT_FIRST_MS * 2 ** Math.min(times, 6));

  const client = connect(address, common, delay);
  for (const script of SCRIPT_NAMES) {
    client.defineCommand(script, { lua: scriptText(script), numberOfKeys: 1 });
  }
  client.on("ready", () => {
    generation += 1;
    if (connected === false) {
      observer.reconnected();
    }
    connected = true;
  });
  client.on("close", () => {
    connected = false;
  });
  client.on("error", (error: Error) => {
    bounded("warn", { event: "redis-error", error: withoutSecrets(error.message, address) }, `${name}: an error`);
  });

  const failure = (error: unknown): WeightlineError => {
    const cause = error instanceof Error ? error : new Error(String(error));
    const kind = kindOf(cause);
    observer.failed(kind);
    const told = kind === "other" ? `: ${withoutSecrets(cause.message, address)}` : "";
    return new WeightlineError("Unavailable", `Redis ${WORDS[kind]}${told}`, {
      field: "REDIS_URL",
      wayOut: "the directory fills itself again when Redis is back",
      value: kind,
    });
  };

  const join = joinWrites(client);
  const inTime = createCommandDeadlines(options.timeoutMs);
  const guarded = async <T>(command: () => Promise<T>): Promise<T> => {
    try {
      join();
      return await command();
    } catch (error) {
      throw failure(error);
    }
  };

  const firstReady = new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, CONNECT_TIMEOUT_MS);
    client.once("ready", () => {
      clearTimeout(timer);
      resolve();
    });
  });

  const scripts = client as unknown as Record<string, (...args: unknown[]) => Promise<ScriptReply[]>>;
  const call = async (script: ScriptName, args: (string | number | Buffer)[], form: "text" | "bytes") => {
    const sentAt = time.monotonicMs();
    const command = scripts[form === "text" ? script : `${script}Buffer`];
    const reply = (await command?.call(client, `${prefix}sources`, prefix, ...args)) ?? [];
    clock.observe(sentAt, time.monotonicMs(), Number(String(reply[0])));
    return reply;
  };

  /** Runs a command, and once more where a key of those given had another type than it should: then that key is removed. */
  const repaired = <T>(command: () => Promise<T>, types: string[]): Promise<T> =>
    guarded(async () => {
      try {
        return await inTime(command());
      } catch (error) {
        if (!(error instanceof Error && kindOf(error) === "wrong_type")) {
          throw error;
        }
        const [, ...removed] = await inTime(call("repair", types, "text"));
        observer.failed("wrong_type");
        const keys = removed.slice(0, 5).map(String);
        bounded(
          "warn",
          { event: "redis-key-repaired", keys },
          `${name} held another type under a key of the directory; removed`,
        );
        return await inTime(command());
      }
    });

  /** Hashes by their keys, a page of them in one pipeline. */
  const paged = async <T>(keys: string[], command: (key: string) => Promise<T>): Promise<T[]> => {
    const results: T[] = [];
    for (let i = 0; i < keys.length; i += PAGE) {
      const page = keys.slice(i, i + PAGE);
      const types = page.flatMap((key) => [key, "hash"]);
      results.push(...(await repaired(() => Promise.all(page.map(command)), types)));
    }
    return results;
  };

  return {
    prefix,
    clock,
    firstReady,
    get generation() {
      return generation;
    },
    run: (script, args, touched, form = "text") => repaired(() => call(script, args, form), keyTypes(prefix, touched)),
    checkWritable: () =>
      guarded(async () => {
        await inTime(client.set(`${prefix}health`, "written by health checks", "PX", HEALTH_TTL_MS));
      }),
    members: (key) => repaired(() => client.zrange(key, "0", "-1"), [key, "zset"]),
    hashes: (keys) => paged(keys, (key) => client.hgetall(key)),
    counts: (keys) => paged(keys, (key) => client.hlen(key)),
    close: () => client.disconnect(),
  };
}

function connect(address: RedisAddress, common: RedisOptions, delay: (times: number) => number): Redis | Cluster {
  if (address.kind === "cluster") {
    const { db: _, ...redisOptions } = common;
    return new Cluster(address.hosts, {
      redisOptions,
      enableOfflineQueue: false,
      enableAutoPipelining: true,
      clusterRetryStrategy: delay,
      slotsRefreshTimeout: CONNECT_TIMEOUT_MS,
    });
  }
  if (address.kind === "sentinel") {
    const options: RedisOptions = {
      ...common,
      sentinels: address.hosts,
      name: address.primary ?? "",
      retryStrategy: delay,
      sentinelRetryStrategy: delay,
      ...(common.tls === undefined ? {} : { sentinelTLS: common.tls, enableTLSForSentinelMode: true }),
    };
    return new Redis(options);
  }
  const [host] = address.hosts;
  const place = address.path === undefined ? { host: host?.host ?? "", port: host?.port ?? 0 } : { path: address.path };
  const options: RedisOptions = { ...common, ...place, retryStrategy: delay };
  return new Redis(options);
}

/** Redis quotes commands in some errors. */
function withoutSecrets(message: string, { username, password }: RedisAddress): string {
  let clean = message;
  for (const secret of [password, username]) {
    clean = secret === undefined ? clean : clean.replaceAll(secret, "***");
  }
  return clean;
}
