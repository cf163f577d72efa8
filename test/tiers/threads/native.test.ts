// The native part's threads under the thread sanitizer: movers, streams, holdings, descriptor tickets and watched processes, all at once.
import { mkdtempSync, rmSync } from "node:fs";
import t from "tap";
import { ROOT, runCommand } from "../../support/program.ts";

const PROGRAM = `${ROOT}packages/rdma-native/build-threads/Release/threads`;
const SECONDS = 60;
/** What the program exits with when a race was seen. */
const RACE_CODE = 66;
const folder = mkdtempSync("/dev/shm/weightline-threads-");
t.teardown(async () => {
  await runCommand(["chattr", "-R", "-f", "-i", folder]);
  rmSync(folder, { recursive: true });
});

// Without randomized addresses: some kernels choose among more than the sanitizer knows.
const run = (...words: string[]) => runCommand(["setarch", "-R", PROGRAM, ...words], { timeoutMs: 200_000 });

t.test("a planted race is seen", async (t) => {
  const done = await run("--planted");
  t.equal(done.code, RACE_CODE);
  t.match(done.stderr, /WARNING: ThreadSanitizer: data race/);
});

t.test("no race, no lock taken in two orders, and the right objects", { timeout: 220_000 }, async (t) => {
  const done = await run(folder, String(SECONDS));
  t.equal(done.code, 0, done.stderr.slice(0, 8000));
  t.notMatch(done.stderr, /WARNING: ThreadSanitizer/);
  const line = done.stdout.trim().split("\n").at(-1) ?? "";
  t.comment(line);
  const counts = JSON.parse(line) as Record<string, number>;
  for (const what of [
    "pulls",
    "pulled",
    "cancelled",
    "damaged",
    "repaired",
    "evicted",
    "fills",
    "descriptors",
    "processes",
    "ends",
  ]) {
    t.ok((counts[what] ?? 0) > 0, `${what} happened`);
  }
});
