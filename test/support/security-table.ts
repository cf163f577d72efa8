import { readFileSync } from "node:fs";
import { ROOT } from "./program.ts";

/** One line of a table in docs/security.md. */
export interface AccessRow {
  /** "package.Service" or "package.Service/Method". */
  calls: string[];
  /** What each column says, by its heading. */
  cells: Record<string, string>;
}

/** The table below the line that begins with `title`. */
export function accessTable(title: string): AccessRow[] {
  const lines = readFileSync(`${ROOT}docs/security.md`, "utf8").split("\n");
  const start = lines.findIndex((line) => line.startsWith(title)) + 1;
  const rows = lines.slice(start).map((line) => line.split("|").map((cell) => cell.trim()));
  const end = rows.findIndex((cells) => cells.length === 1);
  const [heading = [], , ...body] = rows.slice(0, end);
  return body.map((cells) => {
    const [services = "", methods] = (cells[1] ?? "").split(": ");
    const names = (text: string) => [...text.matchAll(/`([^`]+)`/g)].map(([, name = ""]) => name);
    return {
      calls:
        methods === undefined
          ? names(services)
          : names(methods).map((method) => `${names(services)[0] ?? ""}/${method}`),
      cells: Object.fromEntries(heading.slice(2, -1).map((name, i) => [name, cells[i + 2] ?? ""])),
    };
  });
}

/** What the table says of a call. */
export function accessCell(rows: readonly AccessRow[], service: string, method: string, column: string): string {
  const row =
    rows.find(({ calls }) => calls.includes(`${service}/${method}`)) ??
    rows.find(({ calls }) => calls.includes(service));
  const cell = row?.cells[column];
  if (cell === undefined) {
    throw new Error(`docs/security.md says nothing of ${service}/${method} and ${column}`);
  }
  return cell;
}
