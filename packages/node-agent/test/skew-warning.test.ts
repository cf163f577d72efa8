// Field case 37: clocks that differ are told of once.
import type { Logger } from "@weightline/runtime";
import t from "tap";
import { createSkewWarning } from "../src/directory/skew-warning.ts";

function createWatched() {
  const lines: Array<Record<string, unknown>> = [];
  const log = { warn: (fields: Record<string, unknown>) => lines.push(fields) } as unknown as Logger;
  const hear = createSkewWarning(log);
  return { lines, reading: (oursMs: number, roundTripMs = 0) => hear({ theirsMs: 1_000_000, oursMs, roundTripMs }) };
}

t.test("over 5 s, either way, is one warning until the clocks agree again", async (t) => {
  const { lines, reading } = createWatched();
  for (const oursMs of [1_000_000, 1_005_000, 995_000]) {
    reading(oursMs);
  }
  t.same(lines, [], "at the limit");
  for (const oursMs of [1_005_001, 1_600_000, 400_000]) {
    reading(oursMs);
  }
  t.same(lines, [{ event: "clock-skew", ahead_ms: 5001 }]);
  reading(1_000_000);
  reading(400_000);
  t.same(lines.slice(1), [{ event: "clock-skew", ahead_ms: -600_000 }]);
});

t.test("what the answer's way took may be the difference", async (t) => {
  const { lines, reading } = createWatched();
  reading(1_006_000, 2000);
  t.same(lines, []);
  reading(1_006_001, 2000);
  t.equal(lines.length, 1);
});
