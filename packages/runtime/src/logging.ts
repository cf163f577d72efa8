import pino, { type Logger } from "pino";
import pretty from "pino-pretty";

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

/** The program's logger. Logs go to standard error: standard output is for what a command prints. */
export function createLogger({ program, level, format, file }: LoggingOptions): Logger {
  const target = file === "" ? 2 : file;
  const destination = pino.destination({ dest: target, sync: true, append: true, mkdir: true });
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
