// Collects what the parts of the directory's bench measure, one value per run.
import { type BenchResult, check, machineName } from "./measure.ts";

export interface DirectoryReport {
  add(name: string, unit: string, value: number): void;
  /** Like `add`, and asked to be at most or at least so much. */
  ask(name: string, unit: string, value: number, asked: { atMost: number } | { atLeast: number }): void;
  note(text: string): void;
  result(bench: string): BenchResult;
}

export function createReport(): DirectoryReport {
  const series = new Map<string, { values: number[]; unit: string }>();
  const asked = new Map<string, { atMost: number } | { atLeast: number }>();
  const notes = new Set<string>();
  const add: DirectoryReport["add"] = (name, unit, value) => {
    const known = series.get(name) ?? { values: [], unit };
    known.values.push(value);
    series.set(name, known);
  };
  return {
    add,
    ask(name, unit, value, limit) {
      add(name, unit, value);
      asked.set(name, limit);
    },
    note: (text) => void notes.add(text),
    result: (bench) => ({
      bench,
      machine: machineName(),
      series: [...series].map(([name, { values, unit }]) => ({ name, values, unit })),
      checks: [...asked].map(([name, limit]) =>
        check(`${name}, ${series.get(name)?.unit}`, series.get(name)?.values ?? [], limit),
      ),
      notes: [...notes],
    }),
  };
}
