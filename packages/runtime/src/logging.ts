import { accessSync, constants, existsSync, openSync, statSync } from "node:fs";
import { dirname } from "node:path";
import pino, { type Logger } from "pino";
import pretty from "pino-pretty";
import type { Fault } from "./configuration/option.ts";
import { WeightlineError } from "./error.ts";
import { makeFolders } from "./folders.ts";

export type { Logger } from "pino";

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error"] as const;
export const LOG_FORMATS = ["pretty", "json", "compact"] as const;

export interface LoggingOptions {
  /** Name of the program, in every line. */
  program: string;
  level: (typeof LOG_LEVELS)[number];
  /** `json`: one object a line; `pretty`: for people; `compact`: the same without time's date and fields' line breaks. */
  format: (typeof LOG_FORMATS)[number];
  /** File to append to; empty: standard error. */
  file: string;
}

/** Names of fields that hold secrets wherever they are. */
const SECRET_FIELDS = [
  "secret",
  "token",
  "authorization",
  "password",
  "*.secret",
  "*.token",
  "*.authorization",
  "*.password",
];

const LOG_FILE_WAY_OUT =
  "give a file in a folder that this user may write to, or leave it out to log to standard error";

const OPEN_FAULTS: Readonly<Record<string, string>> = {
  EACCES: "this user may not write there",
  EPERM: "this user may not write there",
  EROFS: "the file system is read-only",
  EISDIR: "it is a folder",
  ENOSPC: "the file system is full",
};

function openFault(error: unknown): string {
  const { code = "", message } = error as NodeJS.ErrnoException;
  return OPEN_FAULTS[code] ?? message;
}

/** Why a log file could not be opened; undefined when it can. Makes nothing. */
function logFileFault(path: string): string | undefined {
  let folder = dirname(path);
  while (!existsSync(folder) && folder !== dirname(folder)) {
    folder = dirname(folder);
  }
  try {
    if (existsSync(path) && statSync(path).isDirectory()) {
      return "it is a folder";
    }
    if (!statSync(folder).isDirectory()) {
      return `${folder} is not a folder`;
    }
    if (existsSync(path)) {
      accessSync(path, constants.W_OK);
    } else {
      accessSync(folder, constants.W_OK | constants.X_OK);
    }
    return undefined;
  } catch (error) {
    return openFault(error);
  }
}

/** The check of the option `logging.file`. */
export function checkLogFile(path: string): Fault | undefined {
  const fault = path === "" ? undefined : logFileFault(path);
  return fault === undefined
    ? undefined
    : { message: `the log file ${path} cannot be opened: ${fault}`, wayOut: LOG_FILE_WAY_OUT };
}

/** A descriptor for the log: the file's, or standard error's. */
function openLog(file: string): number {
  if (file === "") {
    return process.stderr.fd;
  }
  const refuse = (fault: string, cause?: unknown) =>
    new WeightlineError("InvalidArgument", `logging.file ${file} cannot be opened: ${fault}`, {
      field: "logging.file",
      value: file,
      wayOut: LOG_FILE_WAY_OUT,
      cause,
    });
  const fault = logFileFault(file);
  if (fault !== undefined) {
    throw refuse(fault);
  }
  try {
    makeFolders(dirname(file));
    return openSync(file, "a", 0o644);
  } catch (error) {
    throw refuse(openFault(error), error);
  }
}

/**
 * The program's logger. Logs go to standard error: standard output is for what a command prints. Throws InvalidArgument for
 * a file that cannot be opened.
 */
export function createLogger({ program, level, format, file }: LoggingOptions): Logger {
  const destination = pino.destination({ fd: openLog(file), sync: true });
  const options = { level, base: { program }, redact: { paths: SECRET_FIELDS, censor: "[secret]" } };
  if (format === "json") {
    return pino(options, destination);
  }
  const compact = format === "compact";
  const stream = pretty({
    destination,
    colorize: file === "" && process.stderr.isTTY === true && process.env["NO_COLOR"] === undefined,
    translateTime: compact ? "HH:MM:ss.l" : "SYS:yyyy-mm-dd HH:MM:ss.l",
    ignore: "pid,hostname,program",
    singleLine: true,
    messageFormat: `${program}: {msg}`,
  });
  return pino(options, stream);
}
