import type { OutputFormat } from "../settings.ts";

/** A column of a table. */
export interface Column<Row> {
  title: string;
  value: (row: Row) => string;
  /** Only with --output wide. */
  wide?: boolean;
  right?: boolean;
}

/** JSON can hold whole numbers up to 2^53 exactly; sizes and times are below. */
function plain(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? Number(value) : value;
}

/** Writes to standard output and waits until it is taken; a reader that left (`| head`) ends the program quietly. */
export async function print(text: string): Promise<void> {
  if (!process.stdout.write(text)) {
    await new Promise((resolve) => process.stdout.once("drain", resolve));
  }
}

/** no-color.org: an empty NO_COLOR is none. */
function useColour(): boolean {
  return process.stdout.isTTY === true && (process.env["NO_COLOR"] ?? "") === "";
}

function emphasise(text: string): string {
  return useColour() ? `\u001b[1m${text}\u001b[0m` : text;
}

const LEVEL_COLOURS: Readonly<Record<string, string>> = { note: "36", warning: "33", error: "31" };

/** The text in the colour of a check's level, on a terminal. */
export function levelColour(level: string, text: string): string {
  const colour = LEVEL_COLOURS[level];
  return colour !== undefined && useColour() ? `\u001b[${colour}m${text}\u001b[0m` : text;
}

/** Control characters and what turns the direction of text: names come from anybody, and a terminal obeys them. */
const UNPRINTABLE = /[\p{Cc}\u2028-\u202e\u2066-\u2069]/gu;

/** The text with everything that a terminal would obey written as \uXXXX. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function toTable<Row>(rows: readonly Row[], columns: readonly Column<Row>[]): string {
  const cells = rows.map((row) => columns.map(({ value }) => printable(value(row))));
  const widths = columns.map(({ title }, i) => Math.max(title.length, ...cells.map((line) => line[i]?.length ?? 0)));
  const line = (texts: readonly string[]) =>
    texts
      .map((text, i) => (columns[i]?.right === true ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0)))
      .join("  ")
      .trimEnd();
  return [emphasise(line(columns.map(({ title }) => title))), ...cells.map(line)].join("\n");
}

/** Prints `data` as JSON or YAML, or `rows` as a table. */
export async function printRows<Row>(
  format: OutputFormat,
  data: unknown,
  rows: readonly Row[],
  columns: readonly Column<Row>[],
  empty: string,
): Promise<void> {
  if (format === "json" || format === "yaml") {
    await printData(format, data);
  } else if (rows.length === 0) {
    await print(`${empty}\n`);
  } else {
    await print(
      `${toTable(
        rows,
        columns.filter(({ wide }) => wide !== true || format === "wide"),
      )}\n`,
    );
  }
}

/** Prints an object as JSON or YAML. */
export async function printData(format: OutputFormat, data: unknown): Promise<void> {
  if (format === "yaml") {
    const { stringify } = await import("yaml");
    await print(stringify(JSON.parse(JSON.stringify(data, plain))));
  } else {
    await print(`${JSON.stringify(data, plain, 2)}\n`);
  }
}

/** Prints a value as one line of JSON. */
export async function printLine(data: unknown): Promise<void> {
  await print(`${JSON.stringify(data, plain)}\n`);
}

/** Prints lines of "name: value". */
export async function printFacts(facts: ReadonlyArray<readonly [string, string]>): Promise<void> {
  const width = Math.max(...facts.map(([name]) => name.length));
  await print(`${facts.map(([name, value]) => `${name.padEnd(width)}  ${printable(value)}`).join("\n")}\n`);
}
