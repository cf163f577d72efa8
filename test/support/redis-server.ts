import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT, type RunningProgram, runCommand, startCommand } from "./program.ts";

/** A real redis-server of the test's own, on a Unix socket in a folder of its own. */
export interface RedisServer {
  readonly folder: string;
  readonly socket: string;
  /** For REDIS_URL. */
  readonly url: string;
  /** The server's own process, not a wrapper's. */
  readonly pid: number;
  /** Runs redis-cli; gives what it prints, trimmed. Throws when Redis says an error. */
  cli(...command: string[]): Promise<string>;
  /** Sets its wall clock so many ms off, where it was started with `movableClock`. */
  shiftClock(ms: number): void;
  kill(signal: NodeJS.Signals): void;
  /** Ends it and keeps the folder, so that it may start again. */
  stop(): Promise<void>;
  /** Starts it again on the same socket and files. */
  start(): Promise<void>;
  /** Ends it and removes the folder. */
  remove(): Promise<void>;
}

export interface RedisServerOptions {
  /** Further arguments: ["--appendonly", "yes"]. */
  arguments?: readonly string[];
  /** With a wall clock that the test sets. */
  movableClock?: boolean;
}

export async function createRedisServer(options: RedisServerOptions = {}): Promise<RedisServer> {
  const folder = mkdtempSync(join(tmpdir(), "wl-redis-"));
  const socket = join(folder, "redis.sock");
  const clockFile = join(folder, "clock");
  let program: RunningProgram | undefined;

  const shiftClock = (ms: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(BigInt(Math.round(ms)));
    const file = openSync(clockFile, existsSync(clockFile) ? "r+" : "w");
    writeSync(file, bytes, 0, 8, 0);
    closeSync(file);
  };
  shiftClock(0);
  const environment: Record<string, string> = {};
  if (options.movableClock) {
    const library = join(folder, "wall_clock.so");
    const built = await runCommand([
      "c++",
      "-O1",
      "-shared",
      "-fPIC",
      "-o",
      library,
      `${ROOT}test/support/wall_clock.cc`,
    ]);
    if (built.code !== 0) {
      throw new Error(`wall_clock.cc does not compile: ${built.stderr}`);
    }
    Object.assign(environment, { LD_PRELOAD: library, WALL_CLOCK_FILE: clockFile });
  }

  const cli = async (...command: string[]): Promise<string> => {
    const done = await runCommand(["redis-cli", "-s", socket, ...command]);
    const text = done.stdout.trim();
    if (done.code !== 0 || /^(ERR|WRONGTYPE|NOAUTH|READONLY|OOM) /.test(text)) {
      throw new Error(`redis-cli ${command[0]}: ${text}${done.stderr}`);
    }
    return text;
  };

  const start = async () => {
    program = startCommand(
      [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        socket,
        "--save",
        "",
        "--dir",
        folder,
        ...(options.arguments ?? []),
      ],
      { env: environment },
    );
    await program.waitFor(/eady to accept connections/);
  };
  await start();

  return {
    folder,
    socket,
    url: `unix://${socket}`,
    get pid() {
      return program?.pid ?? 0;
    },
    cli,
    shiftClock,
    kill: (signal) => program?.kill(signal),
    async stop() {
      program?.kill("SIGCONT");
      await program?.stop();
    },
    start,
    async remove() {
      program?.kill("SIGCONT");
      await program?.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
