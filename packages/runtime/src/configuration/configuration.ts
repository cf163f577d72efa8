import { WeightlineError } from "../error.ts";
import { acceptsNone, type Fault, type Option, type OptionTable, type OptionValues } from "./option.ts";
import { readYamlFile } from "./yaml-file.ts";

/** What a command line asks the program to do. */
export type ConfigurationAction = "run" | "validate" | "print" | "generate" | "schema" | "help";

/** What only prints a text about all settings: their values do not matter. */
const TEXT_ACTIONS: ReadonlySet<ConfigurationAction> = new Set(["generate", "schema", "help"]);

/** A complete, validated set of values. Nothing below it reads the environment or applies a default. */
export interface Configuration<Table> {
  readonly action: ConfigurationAction;
  readonly values: OptionValues<Table>;
  /** Where each value came from: "--port", "MX_PORT", "FILE: server.port", "default". */
  readonly origins: Readonly<Record<keyof Table, string>>;
  /** Lines to log once: service links passed over, names without effect. */
  readonly notices: readonly string[];
}

export interface ConfigurationOptions<Table extends object> {
  table: Table;
  /** Command line after the program's name. */
  argv: readonly string[];
  env: Readonly<Record<string, string | undefined>>;
  /** What the values must be together; returns what is wrong, or undefined. */
  check?: ((values: OptionValues<Table>) => Fault | undefined) | undefined;
}

/** Flags that every program has. */
export const COMMON_FLAGS = {
  "--config": "YAML file with settings, also -c; flags and variables count more",
  "--validate-config": "check all settings, print them, and exit",
  "--print-config": "print the effective settings with their origin, secrets masked, and exit",
  "--generate-config": "print a YAML file with every setting, its default and what it means, and exit",
  "--print-schema": "print the JSON schema of the YAML file, for editors and pipelines, and exit",
  "--help": "this text",
} as const;

type AnyOption = Option<unknown>;

/** Kubernetes gives every Service's address to every pod in variables like REDIS_PORT=tcp://10.0.0.5:6379. */
const SERVICE_LINK = /^(?:tcp|udp|sctp):\/\/\S+:\d+$/;

/** What looks like a flag; a number below zero does not. */
const FLAG_LIKE = /^-(?:-|[a-z])/i;

const ACTIONS: Readonly<Record<string, ConfigurationAction>> = {
  "--validate-config": "validate",
  "--print-config": "print",
  "--generate-config": "generate",
  "--print-schema": "schema",
  "--help": "help",
  "-h": "help",
};

function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(
        Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)),
      );
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}

/** Known names close to one that is not known. */
export function nearNames(name: string, known: Iterable<string>): string[] {
  const most = Math.max(2, Math.floor(name.length / 4));
  return [...known]
    .map((candidate) => ({ candidate, far: distance(name.toLowerCase(), candidate.toLowerCase()) }))
    .filter(({ far }) => far <= most)
    .sort((a, b) => a.far - b.far)
    .slice(0, 3)
    .map(({ candidate }) => candidate);
}

function unknownName(kind: string, name: string, known: Iterable<string>): WeightlineError {
  const near = nearNames(name, known);
  const wayOut = near.length > 0 ? `did you mean ${near.join(" or ")}?` : "see --help";
  return new WeightlineError("InvalidArgument", `${kind} ${name} is not known`, { field: name, near: [], wayOut });
}

function wrongValue(option: AnyOption, origin: string, shown: string): WeightlineError {
  return new WeightlineError(
    "InvalidArgument",
    `${origin} "${option.secret ? "[secret]" : shown}" is not ${option.type.allowed}`,
    {
      field: origin,
      value: option.secret ? "" : shown,
      limit: option.type.allowed,
      wayOut: `give ${option.type.allowed}`,
    },
  );
}

/** A value of the file for an error; what is below it is not this setting's, and may be a secret. */
function shownYaml(raw: unknown): string {
  return typeof raw === "object" ? (Array.isArray(raw) ? "a list" : "a section") : JSON.stringify(raw);
}

interface CommandLine {
  action: ConfigurationAction;
  configFile: string | undefined;
  /** Option name -> text. */
  flags: Map<string, { text: string; flag: string }>;
}

function readCommandLine(table: Record<string, AnyOption>, argv: readonly string[]): CommandLine {
  const byFlag = new Map<string, string>();
  for (const [name, option] of Object.entries(table)) {
    for (const flag of [option.flag, option.short]) {
      if (flag !== undefined) {
        byFlag.set(flag, name);
      }
    }
  }
  const result: CommandLine = { action: "run", configFile: undefined, flags: new Map() };
  for (let i = 0; i < argv.length; i++) {
    const [flag = "", attached] = splitFlag(argv[i] ?? "");
    const action = ACTIONS[flag];
    if (action !== undefined && attached === undefined) {
      result.action = action;
      continue;
    }
    const name = byFlag.get(flag);
    const isConfig = flag === "--config" || flag === "-c";
    if (name === undefined && !isConfig) {
      throw flag.startsWith("-")
        ? unknownName("option", flag, [...byFlag.keys(), ...Object.keys(COMMON_FLAGS)])
        : new WeightlineError("InvalidArgument", `"${flag}" is not an option`, { field: flag, wayOut: "see --help" });
    }
    const bare = name !== undefined && table[name]?.type.bare === true;
    const next = argv[i + 1];
    let text = attached;
    if (text === undefined) {
      const isMissing = next === undefined || FLAG_LIKE.test(next);
      if (bare && isMissing) {
        text = "true";
      } else if (isMissing) {
        throw missingValue(flag, next);
      } else {
        text = next;
        i += 1;
      }
    }
    if (isConfig) {
      result.configFile = text;
    } else if (name !== undefined) {
      result.flags.set(name, { text, flag });
    }
  }
  return result;
}

/** `next` is what stands where the value should. */
export function missingValue(flag: string, next: string | undefined): WeightlineError {
  return new WeightlineError("InvalidArgument", `${flag} needs a value`, {
    field: flag,
    value: next,
    wayOut: next === undefined ? "see --help" : `give one; if ${next} is meant, write ${flag}=${next}`,
  });
}

function splitFlag(argument: string): [string, string | undefined] {
  const equals = argument.indexOf("=");
  return argument.startsWith("--") && equals > 0
    ? [argument.slice(0, equals), argument.slice(equals + 1)]
    : [argument, undefined];
}

function flatten(value: unknown, prefix: string, into: Map<string, unknown>, leaves: ReadonlySet<string>): void {
  if (typeof value === "object" && value !== null && !Array.isArray(value) && !leaves.has(prefix)) {
    const entries = Object.entries(value);
    if (entries.length === 0 && prefix !== "") {
      into.set(prefix, value);
    }
    for (const [key, inner] of entries) {
      flatten(inner, prefix === "" ? key : `${prefix}.${key}`, into, leaves);
    }
  } else {
    into.set(prefix, value);
  }
}

function isEmptySection(value: unknown): boolean {
  return typeof value === "object" && !Array.isArray(value);
}

/** A key of the file that no option has. */
export interface UnknownKey {
  key: string;
  /** Keys that are spelled like it. */
  near: readonly string[];
}

/** The file's settings; a section without settings counts as not there. */
function readYaml(
  file: string | undefined,
  field: string,
  table: Record<string, AnyOption>,
  onUnknown: (key: string, keys: ReadonlySet<string>) => void,
): Map<string, unknown> {
  const values = new Map<string, unknown>();
  if (file === undefined) {
    return values;
  }
  const keys = new Set(Object.values(table).flatMap((option) => option.yaml ?? []));
  flatten(readYamlFile(file, field), "", values, keys);
  for (const [key, value] of values) {
    if (keys.has(key)) {
      continue;
    }
    const section = [...keys].some((known) => known.startsWith(`${key}.`));
    if (!section) {
      onUnknown(key, keys);
    } else if (value !== null && !isEmptySection(value)) {
      throw new WeightlineError("InvalidArgument", `${file}: ${key} must be a section of settings`, {
        field: key,
        wayOut: "write its settings below it, each on a line of its own",
      });
    }
    values.delete(key);
  }
  return values;
}

function isServiceLink(option: AnyOption, text: string): boolean {
  return option.type.ignoresServiceLinks === true && SERVICE_LINK.test(text);
}

interface Found {
  value: unknown;
  origin: string;
}

function fromEnvironment(
  option: AnyOption,
  env: ConfigurationOptions<object>["env"],
  notices: string[],
): Found | undefined {
  for (const name of option.env ?? []) {
    const text = env[name];
    if (text === undefined || text === "") {
      continue;
    }
    if (isServiceLink(option, text)) {
      notices.push(`${name}=${text} is a Kubernetes service link and is not used`);
      continue;
    }
    const value = option.type.parse(text);
    if (value === undefined) {
      throw wrongValue(option, name, text);
    }
    return { value, origin: name };
  }
  return undefined;
}

function findValue(
  name: string,
  option: AnyOption,
  line: CommandLine,
  yaml: Map<string, unknown>,
  env: ConfigurationOptions<object>["env"],
  notices: string[],
): Found {
  const flag = line.flags.get(name);
  if (flag !== undefined) {
    const value = option.type.parse(flag.text);
    if (value === undefined) {
      throw wrongValue(option, flag.flag, flag.text);
    }
    return { value, origin: flag.flag };
  }
  const found = fromEnvironment(option, env, notices);
  if (found !== undefined) {
    return found;
  }
  if (option.yaml !== undefined && yaml.has(option.yaml)) {
    const raw = yaml.get(option.yaml);
    const origin = `${line.configFile}: ${option.yaml}`;
    if (raw !== null) {
      const value = option.type.fromYaml(raw);
      if (value === undefined) {
        throw wrongValue(option, origin, shownYaml(raw));
      }
      return { value, origin };
    }
    if (!acceptsNone(option)) {
      throw new WeightlineError("InvalidArgument", `${origin} is null, and must have a value`, {
        field: origin,
        value: "null",
        limit: option.type.allowed,
        wayOut: `give ${option.type.allowed}, or leave the line out: the default is ${option.type.format(option.default)}`,
      });
    }
  }
  return { value: option.default, origin: "default" };
}

/** What has no effect: of an option that has several variables, each that is set. */
function withoutEffect(option: AnyOption, origin: string, env: ConfigurationOptions<object>["env"]): string {
  const names = option.env?.includes(origin)
    ? option.env.filter((name) => (env[name] ?? "") !== "" && !isServiceLink(option, env[name] ?? ""))
    : [origin];
  return `${names.join(", ")} ${names.length === 1 ? "has" : "have"} no effect`;
}

/** Reads all settings: flag > environment > YAML > default. Throws InvalidArgument naming key, value, what is allowed, and origin. */
export function readConfiguration<Table extends object>(options: ConfigurationOptions<Table>): Configuration<Table> {
  const table = options.table as unknown as Record<string, AnyOption>;
  const line = readCommandLine(table, options.argv);
  const onlyText = TEXT_ACTIONS.has(line.action);
  const yaml = readYaml(onlyText ? undefined : line.configFile, "--config", table, (key, keys) => {
    throw unknownName(`${line.configFile}: setting`, key, keys);
  });
  const values: Record<string, unknown> = {};
  const origins: Record<string, string> = {};
  const notices: string[] = [];
  for (const [name, option] of Object.entries(table)) {
    const found = findValue(name, option, line, yaml, options.env, notices);
    const wrong = option.check?.(found.value);
    if (wrong !== undefined && !onlyText) {
      const { message, wayOut } = typeof wrong === "string" ? { message: wrong, wayOut: "see --help" } : wrong;
      throw new WeightlineError("InvalidArgument", `${message} (from ${found.origin})`, {
        field: found.origin === "default" ? (option.flag ?? name) : found.origin,
        value: option.secret ? "" : option.type.format(found.value),
        wayOut,
      });
    }
    if (option.withoutEffect !== undefined && found.origin !== "default") {
      notices.push(`${withoutEffect(option, found.origin, options.env)}: ${option.withoutEffect}`);
    }
    values[name] = found.value;
    origins[name] = found.origin;
  }
  const wrong = onlyText ? undefined : options.check?.(values as OptionValues<Table>);
  if (wrong !== undefined) {
    throw new WeightlineError("InvalidArgument", wrong.message, { field: "settings", wayOut: wrong.wayOut });
  }
  return { action: line.action, values, origins, notices } as unknown as Configuration<Table>;
}

/** What a YAML file gives, whatever the machine, the flags and the environment say. */
export interface SettingsFile {
  /** Every option's value: the file's, else the default. */
  readonly values: Readonly<Record<string, unknown>>;
  /** Names of the options that the file sets to something. */
  readonly given: ReadonlySet<string>;
  readonly unknown: readonly UnknownKey[];
}

/**
 * Reads a file for one that is written anew from it. Keys that are not known are told, not refused; values of a wrong type are
 * InvalidArgument. What depends on the machine is not checked: the file may be for another one.
 */
export function readSettingsFile(file: string, field: string, options: object): SettingsFile {
  const table = options as Record<string, AnyOption>;
  const unknown: UnknownKey[] = [];
  const yaml = readYaml(file, field, table, (key, keys) => unknown.push({ key, near: nearNames(key, keys) }));
  const line: CommandLine = { action: "generate", configFile: file, flags: new Map() };
  const values: Record<string, unknown> = {};
  const given = new Set<string>();
  for (const [name, option] of Object.entries(table)) {
    const found = findValue(name, option, line, yaml, {}, []);
    values[name] = found.value;
    if (found.origin !== "default") {
      given.add(name);
    }
  }
  return { values, given, unknown };
}

/** For code that walks a table without knowing its values' types. */
export function tableEntries(table: object): Array<[string, AnyOption]> {
  return Object.entries(table as OptionTable as unknown as Record<string, AnyOption>);
}
