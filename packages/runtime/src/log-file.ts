import { accessSync, closeSync, constants, existsSync, openSync, statSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import type { Fault } from "./configuration/option.ts";
import { WeightlineError } from "./error.ts";
import { makeFolders } from "./folders.ts";

/** A log's file. Each line is in the file when `write` returns. */
export interface LogFile {
  /** Never throws: lines that the file does not take, as on a full disk, are counted, and the count is told when it takes some again. */
  write(line: string): void;
  /** Opens the same path anew; gives what is wrong, and stays with the open file, when that fails. */
  reopen(): string | undefined;
}

const LOG_FILE_WAY_OUT =
  "give a file in a folder that this user may write to, or leave it out to log to standard error";
const LOG_FILE_MODE = 0o644;

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

function refuse(file: string, fault: string, cause?: unknown): WeightlineError {
  return new WeightlineError("InvalidArgument", `logging.file ${file} cannot be opened: ${fault}`, {
    field: "logging.file",
    value: file,
    wayOut: LOG_FILE_WAY_OUT,
    cause,
  });
}

function open(file: string): number {
  const fault = logFileFault(file);
  if (fault !== undefined) {
    throw refuse(file, fault);
  }
  try {
    makeFolders(dirname(file));
    return openSync(file, "a", LOG_FILE_MODE);
  } catch (error) {
    throw refuse(file, openFault(error), error);
  }
}

function writeAll(descriptor: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(descriptor, bytes, done);
  }
}

/** Begins with a line's end: the last line may have been written in part. */
function lostLine(lines: number): string {
  return `\n${JSON.stringify({ event: "log-lines-lost", lines, time: Date.now() })}\n`;
}

/** Opens a log's file, and the folders above it. Throws InvalidArgument naming file and reason. */
export function openLogFile(file: string): LogFile {
  let descriptor = open(file);
  let lost = 0;
  return {
    write(line) {
      try {
        if (lost > 0) {
          writeAll(descriptor, lostLine(lost));
          lost = 0;
        }
        writeAll(descriptor, line);
      } catch {
        lost += 1;
      }
    },
    reopen() {
      try {
        const next = open(file);
        closeSync(descriptor);
        descriptor = next;
        return undefined;
      } catch (error) {
        return (error as Error).message;
      }
    },
  };
}
