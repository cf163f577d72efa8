import { readFileSync } from "node:fs";
import { type NetworkAddress, parseAddresses, WeightlineError } from "@weightline/runtime";
import { parse } from "yaml";

export const OUTPUT_FORMATS = ["table", "wide", "json", "yaml"] as const;
export type OutputFormat = (typeof OUTPUT_FORMATS)[number];

/** Global options, resolved: flag > environment > YAML > default. */
export interface Settings {
  endpoint: NetworkAddress[];
  /** As it was given, for errors. */
  endpointText: string;
  socket: string;
  output: OutputFormat;
  timeoutMs: number;
  maxRetries: number;
  verbose: boolean;
}

/** What the command line gives; everything optional. */
export interface GlobalFlags {
  config?: string;
  endpoint?: string;
  socket?: string;
  output?: string;
  timeout?: string;
  verbose?: boolean;
}

const DEFAULT_ENDPOINT = "localhost:8001";
const DEFAULT_SOCKET = "/run/weightline/agent.sock";
const DEFAULT_TIMEOUT_S = 30;
const TIMEOUT_MAX_S = 86_400;
const CONFIG_KEYS = ["endpoint", "socket", "output", "timeout"] as const;

function readConfig(path: string | undefined): Map<string, string> {
  const values = new Map<string, string>();
  if (path === undefined) {
    return values;
  }
  let root: unknown;
  try {
    root = parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw new WeightlineError("InvalidArgument", `--config ${path} cannot be read: ${(cause as Error).message}`, {
      field: "--config",
      value: path,
      cause,
    });
  }
  for (const [key, value] of Object.entries((root ?? {}) as Record<string, unknown>)) {
    if (!CONFIG_KEYS.some((known) => known === key)) {
      throw new WeightlineError("InvalidArgument", `${path}: setting ${key} is not known`, {
        field: key,
        limit: CONFIG_KEYS.join(", "),
        wayOut: `known are ${CONFIG_KEYS.join(", ")}`,
      });
    }
    values.set(key, String(value));
  }
  return values;
}

function readNumber(name: string, text: string, most: number): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value) || value < 0 || value > most) {
    throw new WeightlineError("InvalidArgument", `${name} "${text}" is not a number from 0 to ${most}`, {
      field: name,
      value: text,
      limit: `0 to ${most}`,
      wayOut: "give a number",
    });
  }
  return value;
}

export function readSettings(flags: GlobalFlags, env: NodeJS.ProcessEnv): Settings {
  const config = readConfig(flags.config);
  const endpointText =
    flags.endpoint ??
    env["MODEL_EXPRESS_ENDPOINT"] ??
    env["MODEL_EXPRESS_URL"] ??
    env["MX_SERVER_ADDRESS"] ??
    config.get("endpoint") ??
    DEFAULT_ENDPOINT;
  const outputText = flags.output ?? config.get("output") ?? "table";
  const output = OUTPUT_FORMATS.find((format) => format === outputText);
  if (output === undefined) {
    throw new WeightlineError("InvalidArgument", `--output "${outputText}" is not known`, {
      field: "--output",
      value: outputText,
      limit: OUTPUT_FORMATS.join(", "),
      wayOut: `give one of ${OUTPUT_FORMATS.join(", ")}`,
    });
  }
  return {
    endpoint: parseAddresses(endpointText, "--endpoint"),
    endpointText,
    socket: flags.socket ?? env["MX_AGENT_SOCKET"] ?? config.get("socket") ?? DEFAULT_SOCKET,
    output,
    timeoutMs:
      readNumber(
        "--timeout",
        flags.timeout ?? env["MODEL_EXPRESS_TIMEOUT"] ?? config.get("timeout") ?? String(DEFAULT_TIMEOUT_S),
        TIMEOUT_MAX_S,
      ) * 1000,
    maxRetries: readNumber("MODEL_EXPRESS_MAX_RETRIES", env["MODEL_EXPRESS_MAX_RETRIES"] ?? "0", 100),
    verbose: flags.verbose === true,
  };
}
