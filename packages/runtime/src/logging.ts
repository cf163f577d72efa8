import pino, { type DestinationStream, type Logger } from "pino";
import { prettyFactory } from "pino-pretty";
import { openLogFile } from "./log-file.ts";

export type { Logger } from "pino";

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error"] as const;
export const LOG_FORMATS = ["pretty", "json", "compact"] as const;

export interface LoggingOptions {
  /** Name of the program, in every line. */
  program: string;
  level: (typeof LOG_LEVELS)[number];
  /** `json`: one object a line; `pretty`: a line for people, with date and offset; `compact`: the same with the time alone. */
  format: (typeof LOG_FORMATS)[number];
  /** File to append to; empty: standard error. */
  file: string;
  /** Opens the file anew when the process gets this signal, after it was moved away. Without a file the signal is left alone. */
  reopenOn?: NodeJS.Signals;
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

/**
 * The program's logger. Logs go to standard error: standard output is for what a command prints. Throws InvalidArgument for
 * a file that cannot be opened.
 */
export function createLogger(options: LoggingOptions): Logger {
  const { program, level, format, file } = options;
  const target = file === "" ? undefined : openLogFile(file);
  const destination = target ?? pino.destination({ fd: process.stderr.fd, sync: true });
  const log = pino(
    { level, base: { program }, redact: { paths: SECRET_FIELDS, censor: "[secret]" } },
    format === "json" ? destination : forPeople(options, destination),
  );
  if (target !== undefined && options.reopenOn !== undefined) {
    process.on(options.reopenOn, () => {
      const fault = target.reopen();
      if (fault === undefined) {
        log.info({ event: "log-reopened" }, "the log file was opened anew");
      } else {
        log.error({ event: "log-not-reopened", error: fault }, "the log goes on in the file that was open");
      }
    });
  }
  return log;
}

/** Makes a line for people of each, in the same call: a program that ends has written all that it said. */
function forPeople({ program, format, file }: LoggingOptions, destination: DestinationStream): DestinationStream {
  const line = prettyFactory({
    colorize: file === "" && process.stderr.isTTY === true && process.env["NO_COLOR"] === undefined,
    translateTime: format === "compact" ? "SYS:HH:MM:ss.l" : "SYS:yyyy-mm-dd HH:MM:ss.l o",
    ignore: "pid,hostname,program",
    singleLine: true,
    // A field named `error` is a text here, and stays in its line.
    errorLikeObjectKeys: [],
    messageFormat: `${program}: {msg}`,
  });
  return { write: (json) => destination.write(line(json)) };
}
