import { type Configuration, readConfiguration } from "./configuration.ts";
import { effectiveText, helpText, sampleText } from "./configuration-text.ts";
import { schemaText } from "./json-schema.ts";
import type { Fault, OptionValues } from "./option.ts";

export interface ProgramDescription<Table extends object> {
  /** Name of the program, as a user types it. */
  program: string;
  summary: string;
  table: Table;
  examples: readonly string[];
  /** What the values must be together. */
  check?: (values: OptionValues<Table>) => Fault | undefined;
}

/**
 * A daemon's configuration, or undefined when the command line asked only for a text (--help, --validate-config,
 * --print-config, --generate-config, --print-schema), which is printed on standard output then.
 */
export function configureProgram<Table extends object>(
  description: ProgramDescription<Table>,
): Configuration<Table> | undefined {
  const { program, summary, table, examples, check } = description;
  const configuration = readConfiguration({ table, argv: process.argv.slice(2), env: process.env, check });
  const print = (text: string) => void process.stdout.write(text);
  switch (configuration.action) {
    case "help":
      print(helpText(program, summary, table, examples));
      return undefined;
    case "generate":
      print(sampleText(program, table));
      return undefined;
    case "schema":
      print(schemaText(program, table));
      return undefined;
    case "validate":
    case "print":
      for (const notice of configuration.notices) {
        process.stderr.write(`${program}: ${notice}\n`);
      }
      print(effectiveText(table, configuration));
      return undefined;
    case "run":
      return configuration;
  }
}
