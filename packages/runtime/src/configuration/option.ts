import type { OptionType } from "./option-types.ts";

/** One setting of a program, wherever it comes from. */
export interface Option<T> {
  type: OptionType<T>;
  /** Dotted path in the YAML file; absent: flag and environment only. */
  yaml?: string;
  /** "--port"; absent: YAML and environment only. */
  flag?: string;
  /** "-p". */
  short?: string;
  /** Variables in the order in which they count. */
  env?: readonly string[];
  default: T;
  /** What documents and files show in the place of a default that depends on the machine. */
  defaultText?: string;
  /** What it means, with its unit. */
  description: string;
  /** Never printed. */
  secret?: boolean;
  /** Accepted for existing users; setting it has no effect, and one line says so. */
  withoutEffect?: string;
  /** The default stands for "none": `null` in YAML says the same. An empty text or list is "none" by itself. */
  optional?: boolean;
  /** A further check; returns what is wrong, or undefined. */
  check?: (value: T) => string | Fault | undefined;
}

/** What a check found, and what the reader can do. */
export interface Fault {
  message: string;
  wayOut: string;
}

/** True when the option may have no value. */
export function acceptsNone(option: Option<unknown>): boolean {
  return option.optional === true || option.type.format(option.default) === "";
}

/** All options of a program, by the names under which it uses their values. */
export type OptionTable = Readonly<Record<string, Option<never>>>;

/** The values of a table. */
export type OptionValues<Table> = { readonly [Name in keyof Table]: Table[Name] extends Option<infer T> ? T : never };

/** Declares an option with its type inferred. */
export function option<T>(definition: Omit<Option<T>, "default"> & { default: NoInfer<T> }): Option<T> {
  return definition;
}
