import type { NamedFile } from "@weightline/runtime/channels";
import {
  type ErrorFacts,
  type NetworkAddress,
  parseAddresses,
  readYamlFile,
  WeightlineError,
} from "@weightline/runtime/client";

/** The variable by which stock clients find their token. */
const TOKEN_VARIABLE = "MX_AUTH_TOKEN_PATH";

export const OUTPUT_FORMATS = ["table", "wide", "json", "yaml"] as const;
export type OutputFormat = (typeof OUTPUT_FORMATS)[number];

/** What proves the user to the control plane; each as it was given. */
export interface CredentialFiles {
  ca?: NamedFile;
  cert?: NamedFile;
  key?: NamedFile;
  token?: NamedFile;
}

/** Global options, resolved: flag > environment > YAML > default. */
export interface Settings {
  endpoint: NetworkAddress[];
  /** As it was given, for errors. */
  endpointText: string;
  socket: string;
  /** The option, variable or file that gave the socket. */
  socketFrom: string;
  output: OutputFormat;
  /** Ms for each call; of one that streams, the silence after which the other side is asked whether it lives. */
  timeoutMs: number;
  /** How often a call to the control plane is given again after all of its addresses were unreachable. */
  maxRetries: number;
  files: CredentialFiles;
  trustDomain: string;
  verbose: boolean;
}

/** What the command line gives; everything optional. */
export interface GlobalFlags {
  config?: string;
  endpoint?: string;
  socket?: string;
  output?: string;
  timeout?: string;
  ca?: string;
  cert?: string;
  key?: string;
  tokenFile?: string;
  trustDomain?: string;
  verbose?: boolean;
}

const DEFAULT_ENDPOINT = "localhost:8001";
const DEFAULT_SOCKET = "/run/weightline/agent.sock";
const DEFAULT_TIMEOUT_S = 30;
const TIMEOUT_MAX_S = 86_400;
const RETRIES_MAX = 100;
const DEFAULT_TRUST_DOMAIN = "cluster.local";
const CONFIG_KEYS = [
  "endpoint",
  "socket",
  "output",
  "timeout",
  "ca",
  "cert",
  "key",
  "token_file",
  "trust_domain",
] as const;
type ConfigKey = (typeof CONFIG_KEYS)[number];

/** A value and where it came from, for errors. */
interface Given {
  text: string;
  from: string;
}

function invalid(message: string, field: string, facts: ErrorFacts): WeightlineError {
  return new WeightlineError("InvalidArgument", message, { field, ...facts });
}

function readConfig(path: string | undefined): Map<ConfigKey, Given> {
  const values = new Map<ConfigKey, Given>();
  for (const [name, value] of Object.entries(path === undefined ? {} : readYamlFile(path, "--config"))) {
    const key = CONFIG_KEYS.find((known) => known === name);
    if (key === undefined) {
      throw invalid(`${path}: setting ${name} is not known`, name, {
        limit: CONFIG_KEYS.join(", "),
        wayOut: `known are ${CONFIG_KEYS.join(", ")}`,
      });
    }
    // `null` says what leaving the line out says.
    if (value === null) {
      continue;
    }
    if (typeof value !== "string" && !(key === "timeout" && typeof value === "number")) {
      const wanted = key === "timeout" ? "a number of seconds" : "a string";
      throw invalid(`${path}: setting ${key} ${JSON.stringify(value)} is not ${wanted}`, key, {
        value: JSON.stringify(value),
        limit: wanted,
        wayOut: `give ${wanted}`,
      });
    }
    values.set(key, { text: String(value), from: `${path}: ${key}` });
  }
  return values;
}

/** The first that is given: flag, environment (an empty variable is none), file, default. */
function choose(
  flag: string,
  flagValue: string | undefined,
  env: NodeJS.ProcessEnv,
  variables: readonly string[],
  file: Given | undefined,
  fallback: string,
): Given {
  if (flagValue !== undefined) {
    return { text: flagValue, from: flag };
  }
  for (const variable of variables) {
    const text = env[variable];
    if (text !== undefined && text !== "") {
      return { text, from: variable };
    }
  }
  return file ?? { text: fallback, from: flag };
}

function readTimeoutMs({ text, from }: Given): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value) || value <= 0 || value > TIMEOUT_MAX_S) {
    throw invalid(`${from} "${text}" is not a number of seconds above 0, up to ${TIMEOUT_MAX_S}`, from, {
      value: text,
      limit: `above 0, up to ${TIMEOUT_MAX_S}`,
      wayOut: "give seconds, such as 30 or 2.5",
    });
  }
  return Math.max(1, value * 1000);
}

/** A whole number as people write it: digits alone. */
export function readWhole(text: string, from: string, most: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(value <= most)) {
    throw invalid(`${from} "${text}" is not a whole number from 0 to ${most}`, from, {
      value: text,
      limit: `0 to ${most}`,
      wayOut: "give a whole number",
    });
  }
  return value;
}

function readOutput({ text, from }: Given): OutputFormat {
  const output = OUTPUT_FORMATS.find((format) => format === text);
  if (output === undefined) {
    throw invalid(`${from} "${text}" is not known`, from, {
      value: text,
      limit: OUTPUT_FORMATS.join(", "),
      wayOut: `give one of ${OUTPUT_FORMATS.join(", ")}`,
    });
  }
  return output;
}

/** Files of credentials. A token that only the surroundings name, as in a stock client's pod, is for TLS or for nobody. */
function readFiles(flags: GlobalFlags, env: NodeJS.ProcessEnv, file: ReadonlyMap<ConfigKey, Given>): CredentialFiles {
  const named = (flag: string, value: string | undefined, variable: string, key: ConfigKey): NamedFile | undefined => {
    const { text, from } = choose(flag, value, env, [variable], file.get(key), "");
    return text === "" ? undefined : { path: text, setting: from };
  };
  const ca = named("--ca", flags.ca, "MODEL_EXPRESS_SECURITY_TLS_CA_FILE", "ca");
  const cert = named("--cert", flags.cert, "MODEL_EXPRESS_SECURITY_TLS_CERTIFICATE_FILE", "cert");
  const key = named("--key", flags.key, "MODEL_EXPRESS_SECURITY_TLS_KEY_FILE", "key");
  const token = named("--token-file", flags.tokenFile, TOKEN_VARIABLE, "token_file");
  return {
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
    ...(token === undefined || (token.setting === TOKEN_VARIABLE && ca === undefined) ? {} : { token }),
  };
}

/** Global options of one command line. Throws InvalidArgument, which names the value and where it came from. */
export function readSettings(flags: GlobalFlags, env: NodeJS.ProcessEnv): Settings {
  const file = readConfig(flags.config);
  const variables = ["MODEL_EXPRESS_ENDPOINT", "MODEL_EXPRESS_URL", "MX_SERVER_ADDRESS"];
  const endpoint = choose("--endpoint", flags.endpoint, env, variables, file.get("endpoint"), DEFAULT_ENDPOINT);
  const socket = choose("--socket", flags.socket, env, ["MX_AGENT_SOCKET"], file.get("socket"), DEFAULT_SOCKET);
  return {
    endpoint: parseAddresses(endpoint.text, endpoint.from),
    endpointText: endpoint.text,
    socket: socket.text,
    socketFrom: socket.from,
    output: readOutput(choose("--output", flags.output, env, [], file.get("output"), "table")),
    timeoutMs: readTimeoutMs(
      choose(
        "--timeout",
        flags.timeout,
        env,
        ["MODEL_EXPRESS_TIMEOUT"],
        file.get("timeout"),
        String(DEFAULT_TIMEOUT_S),
      ),
    ),
    maxRetries: readWhole(env["MODEL_EXPRESS_MAX_RETRIES"] || "0", "MODEL_EXPRESS_MAX_RETRIES", RETRIES_MAX),
    files: readFiles(flags, env, file),
    trustDomain: choose(
      "--trust-domain",
      flags.trustDomain,
      env,
      ["MODEL_EXPRESS_SECURITY_TRUST_DOMAIN"],
      file.get("trust_domain"),
      DEFAULT_TRUST_DOMAIN,
    ).text,
    verbose: flags.verbose === true,
  };
}
