import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fchmodSync,
  fsyncSync,
  linkSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { createTwoFilesPatch } from "diff";
import { describeError, ERROR_CODES, toWeightlineError, WeightlineError } from "../error.ts";
import { makeFolders } from "../folders.ts";
import { readSettingsFile, tableEntries, type UnknownKey } from "./configuration.ts";
import { sampleText } from "./configuration-text.ts";

export interface ConfigGeneratorOptions {
  /** Name of this program, as a user types it. */
  program: string;
  /** Whose settings they are. */
  subject: string;
  table: object;
  /** Where the file goes when the command line does not say. */
  defaultFile: string;
}

const MASK = "[secret]";
/** Of a file that has a secret in it, and of one that has none. */
const PRIVATE_MODE = 0o600;
const PUBLIC_MODE = 0o644;
const DIFF_CONTEXT_LINES = 3;

interface Request {
  output: string;
  input: string | undefined;
  overwrite: boolean;
  showDiff: boolean;
  dryRun: boolean;
  help: boolean;
}

function usage({ program, subject, defaultFile }: ConfigGeneratorOptions): string {
  return `${program}: writes the YAML file of ${subject} with every setting, its default and what it means

usage: ${program} [-o FILE] [-i FILE] [--overwrite] [--show-diff] [--dry-run]

  -o, --output FILE   file to write; default ${defaultFile}
  -i, --input FILE    an older file: its values are kept, keys that are not known are named and left out, its comments too
  --overwrite         replace the file if it is there; without this it is left as it is (exit 6)
  --show-diff         print what changes, against the older file, else against what is in the output file now
  --dry-run           write nothing; print the file, or with --show-diff what would change
  -h, --help          this text

Secrets are written to the file, and never printed. The file is replaced as a whole or not at all.

Examples:
  ${program}
  ${program} -o /etc/weightline/${defaultFile}
  ${program} -i old.yaml -o ${defaultFile} --show-diff --dry-run
  ${program} -i ${defaultFile} -o ${defaultFile} --overwrite
`;
}

function readRequest(argv: readonly string[], options: ConfigGeneratorOptions): Request {
  try {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        output: { type: "string", short: "o", default: options.defaultFile },
        input: { type: "string", short: "i" },
        overwrite: { type: "boolean", default: false },
        "show-diff": { type: "boolean", default: false },
        "dry-run": { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    });
    const { output, input, overwrite, help } = values;
    return { output, input, overwrite, help, showDiff: values["show-diff"], dryRun: values["dry-run"] };
  } catch (error) {
    const [sentence = ""] = (error as Error).message.split(". ");
    throw new WeightlineError("InvalidArgument", sentence, { field: "command line", wayOut: "see --help" });
  }
}

/** The text as it may be shown: every value of a secret masked. */
function masked(text: string, secrets: readonly string[]): string {
  return secrets.reduce((rest, secret) => rest.replaceAll(secret, MASK), text);
}

function textAt(file: string): string {
  return existsSync(file) ? readFileSync(file, "utf8") : "";
}

function taken(file: string): WeightlineError {
  return new WeightlineError("AlreadyExists", `${file} is there already`, {
    field: "--output",
    value: file,
    wayOut: "give another --output, or --overwrite to replace it",
  });
}

/** Writes a whole file under its name, or leaves what is there as it is. */
function writeWhole(file: string, text: string, mode: number, overwrite: boolean): void {
  // The file that a link means is replaced, not the link.
  const target = existsSync(file) ? realpathSync(file) : file;
  makeFolders(dirname(target));
  const draft = join(dirname(target), `.${basename(target)}.${randomBytes(4).toString("hex")}`);
  const descriptor = openSync(draft, "wx", mode);
  try {
    fchmodSync(descriptor, mode);
    writeFileSync(descriptor, text);
    fsyncSync(descriptor);
    if (overwrite) {
      renameSync(draft, target);
    } else {
      // Unlike a rename, a link fails where somebody made the file meanwhile.
      linkSync(draft, target);
    }
  } finally {
    closeSync(descriptor);
    rmSync(draft, { force: true });
  }
}

function write(request: Request, text: string, hasSecret: boolean): void {
  const { output, overwrite } = request;
  const before = statSync(output, { throwIfNoEntry: false });
  if (before !== undefined && !overwrite) {
    throw taken(output);
  }
  const mode = before === undefined ? (hasSecret ? PRIVATE_MODE : PUBLIC_MODE) : before.mode & 0o777;
  try {
    writeWhole(output, text, mode, overwrite);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw code === "EEXIST"
      ? taken(output)
      : new WeightlineError("InvalidArgument", `${output} cannot be written: ${message}`, {
          field: "--output",
          value: output,
          wayOut: "give a file in a folder that this user may write to",
          cause: error,
        });
  }
}

function describeUnknown(file: string, { key, near }: UnknownKey): string {
  const hint = near.length === 0 ? "" : `; did you mean ${near.join(" or ")}?`;
  return `${file}: ${key} is not known, and left out${hint}`;
}

function generate(request: Request, options: ConfigGeneratorOptions, say: (line: string) => void): string {
  const { input, output } = request;
  const entries = tableEntries(options.table);
  const settings = input === undefined ? undefined : readSettingsFile(input, "--input", options.table);
  for (const unknown of settings?.unknown ?? []) {
    say(describeUnknown(input ?? "", unknown));
  }
  const secrets = entries
    .filter(([name, { secret }]) => secret === true && settings?.given.has(name))
    .map(([name, option]) => option.type.format(settings?.values[name]))
    .filter((secret) => secret !== "");
  const text = sampleText(options.subject, options.table, settings?.values);
  const base = input ?? output;
  const patch = () => {
    const lines = createTwoFilesPatch(base, output, textAt(base), text, "", "", { context: DIFF_CONTEXT_LINES });
    const [, body = ""] = lines.split(/^=+\n/m);
    return body.includes("\n@@") ? body : "";
  };
  const shown = request.showDiff ? masked(patch(), secrets) : request.dryRun ? masked(text, secrets) : "";
  if (!request.dryRun) {
    write(request, text, secrets.length > 0);
    say(`${output} is written${input === undefined ? "" : `, with the values of ${input}`}`);
  } else if (request.showDiff && shown === "") {
    say(`${output} would be as ${base} is`);
  }
  return shown;
}

/** The command line of the generator; gives its exit code (docs/errors.md). */
export function runConfigGenerator(options: ConfigGeneratorOptions, argv: readonly string[]): number {
  const say = (line: string) => void process.stderr.write(`${options.program}: ${line}\n`);
  try {
    const request = readRequest(argv, options);
    process.stdout.write(request.help ? usage(options) : generate(request, options, say));
    return 0;
  } catch (error) {
    say(describeError(error));
    return ERROR_CODES[toWeightlineError(error).code].exit;
  }
}
