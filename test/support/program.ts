import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** The checkout's root. */
export const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** How Node runs a program that serves, as `./mx` starts it. */
function nodeFlags(root: string, entry: string): string[] {
  const path = `${root}packages/${entry}/node-flags`;
  const lines = existsSync(path) ? readFileSync(path, "utf8").split("\n") : [];
  return lines.filter((line) => line.startsWith("--"));
}

/** What tools/setup.sh put there: reads metrics and rules as Prometheus does. */
export const PROMTOOL = `${ROOT}.tools/promtool/promtool`;

/** A program of ours that runs. */
export interface RunningProgram {
  readonly pid: number;
  /** All that it wrote to standard error and output so far. */
  output(): string;
  /** Waits for a line that matches, in what was or will be written. */
  waitFor(pattern: RegExp, timeoutMs?: number): Promise<RegExpExecArray>;
  /** Writes to its standard input. */
  say(text: string): void;
  /** Ends its standard input. */
  end(): void;
  kill(signal: NodeJS.Signals): void;
  /** Ends it with SIGTERM, then SIGKILL; gives its exit code. */
  stop(): Promise<number | null>;
  readonly exited: Promise<number | null>;
}

export interface ProgramOptions {
  env?: Record<string, string>;
  cwd?: string;
  /** Runs it by another program: ["ip", "netns", "exec", NAME]. */
  wrapper?: readonly string[];
  /** Another checkout's root, whose packages are run: a newer or older build. */
  root?: string;
}

const STOP_TIMEOUT_MS = 8000;
const WAIT_TIMEOUT_MS = 20_000;
/** Variables that would change what a program does. */
const FOREIGN = /^(MX_|MODEL_EXPRESS_|REDIS_|NODE_NAME$|POD_|TAP|_TAPJS|NODE_OPTIONS|NODE_CHANNEL)/;

export function cleanEnvironment(more: Record<string, string> = {}): Record<string, string> {
  const kept = Object.entries(process.env).filter(([name, value]) => value !== undefined && !FOREIGN.test(name));
  return { ...(Object.fromEntries(kept) as Record<string, string>), ...more };
}

/** Starts a program of packages/; `entry` like "node-agent". */
export function startProgram(
  entry: string,
  parameters: readonly string[],
  options: ProgramOptions = {},
): RunningProgram {
  const command = [
    ...(options.wrapper ?? []),
    process.execPath,
    "--disable-warning=ExperimentalWarning",
    ...nodeFlags(options.root ?? ROOT, entry),
    `${options.root ?? ROOT}packages/${entry}/src/main.ts`,
    ...parameters,
  ];
  return startCommand(command, options);
}

/** Starts any command. */
export function startCommand(command: readonly string[], options: ProgramOptions = {}): RunningProgram {
  const [file = "", ...rest] = command;
  const child: ChildProcess = spawn(file, rest, {
    stdio: ["pipe", "pipe", "pipe"],
    env: cleanEnvironment(options.env),
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  child.stdin?.on("error", () => undefined);
  let output = "";
  const listeners = new Set<() => void>();
  const take = (data: Buffer) => {
    output += data.toString("utf8");
    for (const listener of listeners) {
      listener();
    }
  };
  child.stdout?.on("data", take);
  child.stderr?.on("data", take);
  const exited = new Promise<number | null>((resolve) => {
    child.once("close", (code) => resolve(code));
    child.once("error", () => resolve(null));
  });
  return {
    pid: child.pid ?? -1,
    output: () => output,
    exited,
    waitFor(pattern, timeoutMs = WAIT_TIMEOUT_MS) {
      return new Promise((resolve, reject) => {
        const end = (settle: () => void) => {
          clearTimeout(timer);
          listeners.delete(look);
          settle();
        };
        const look = () => {
          const match = pattern.exec(output);
          if (match !== null) {
            end(() => resolve(match));
          }
        };
        const timer = setTimeout(
          () =>
            end(() =>
              reject(new Error(`${command.slice(0, 4).join(" ")}: no ${pattern} within ${timeoutMs} ms:\n${output}`)),
            ),
          timeoutMs,
        );
        listeners.add(look);
        exited.then(() =>
          setTimeout(
            () => end(() => reject(new Error(`${command.slice(0, 4).join(" ")} ended without ${pattern}:\n${output}`))),
            20,
          ),
        );
        look();
      });
    },
    say: (text) => void child.stdin?.write(text),
    end: () => void child.stdin?.end(),
    kill: (signal) => void child.kill(signal),
    async stop() {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill("SIGTERM");
        const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
        await exited;
        clearTimeout(timer);
      }
      return exited;
    },
  };
}

export interface Finished {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a command to its end. */
export function runCommand(
  command: readonly string[],
  options: ProgramOptions & { timeoutMs?: number; input?: string } = {},
): Promise<Finished> {
  const [file = "", ...rest] = command;
  return new Promise((resolve) => {
    const child = spawn(file, rest, {
      stdio: ["pipe", "pipe", "pipe"],
      env: cleanEnvironment(options.env),
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (data: Buffer) => {
      stdout += data.toString("utf8");
    });
    child.stderr.on("data", (data: Buffer) => {
      stderr += data.toString("utf8");
    });
    child.stdin.on("error", () => undefined);
    child.stdin.end(options.input ?? "");
    const timer = setTimeout(() => child.kill("SIGKILL"), options.timeoutMs ?? 60_000);
    child.once("error", (error) => {
      stderr += error.message;
    });
    child.once("close", (code) => {
      clearTimeout(timer);
      resolve({ code, stdout, stderr });
    });
  });
}

/** Runs mxctl. */
export function mxctl(
  parameters: readonly string[],
  options: ProgramOptions & { timeoutMs?: number } = {},
): Promise<Finished> {
  return runCommand(
    [
      ...(options.wrapper ?? []),
      process.execPath,
      "--disable-warning=ExperimentalWarning",
      `${ROOT}packages/mxctl/src/main.ts`,
      ...parameters,
    ],
    options,
  );
}

/** Environment in which Python finds the client and the tests' packages. */
export function pythonEnvironment(more: Record<string, string> = {}): Record<string, string> {
  return { PYTHONPATH: `${ROOT}python/weightline:${ROOT}.tools/python`, PYTHONDONTWRITEBYTECODE: "1", ...more };
}
