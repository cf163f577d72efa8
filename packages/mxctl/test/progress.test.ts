// What people see while they wait.
import { create } from "@bufbuild/protobuf";
import { FillProgressSchema } from "@weightline/proto/common";
import t from "tap";
import { createProgressDisplay } from "../src/output/progress.ts";
import { waiting } from "../src/output/waiting.ts";

const CLEAR = "\r\u001b[2K";

/** A stream that remembers, and tells of its first text. */
function stream(isTTY: boolean) {
  const first = Promise.withResolvers<void>();
  let text = "";
  const fake = {
    isTTY,
    columns: 120,
    write(more: string) {
      text += more;
      first.resolve();
      return true;
    },
  };
  return { fake: fake as unknown as NodeJS.WriteStream, text: () => text, first: first.promise };
}

const progress = (verifiedBytes: bigint, bytesPerS: number, parent = "b") =>
  create(FillProgressSchema, { state: "receiving", verifiedBytes, totalBytes: 100n * 1024n ** 2n, bytesPerS, parent });

t.test("a bar with rate and time left, cut to the terminal, taken away at the end", async (t) => {
  const { fake, text } = stream(true);
  const display = createProgressDisplay(fake);
  display.show("", progress(50n * 1024n ** 2n, 10 * 1024 ** 2));
  t.equal(
    text(),
    "\r\u001b[2K[###############...............]  50% receiving from b 50.0 MiB of 100.0 MiB at 10.0 MiB/s, 5 s left",
  );
  display.show("", progress(50n * 1024n ** 2n, 1024));
  t.match(text(), /, 853 min left$/);
  display.show("", progress(100n * 1024n ** 2n, 1024));
  t.match(text(), /100% receiving from b 100\.0 MiB of 100\.0 MiB at 1\.0 KiB\/s$/, "nothing is left");
  display.show("", progress(0n, 0, "n".repeat(200)));
  t.ok(
    text()
      .split(CLEAR)
      .every((line) => line.length < 120),
    "a line that wraps cannot be taken back",
  );
  display.end();
  t.ok(text().endsWith(CLEAR));
});

t.test("waiting is shown after a second, on a terminal alone", async (t) => {
  const shown = stream(true);
  const work = Promise.withResolvers<number>();
  const result = waiting("evicting", work.promise, shown.fake);
  await shown.first;
  t.match(shown.text().replaceAll(CLEAR, ""), /^evicting \.\.\. \d s$/);
  work.resolve(5);
  t.equal(await result, 5);
  t.ok(shown.text().endsWith(`s${CLEAR}`), "taken away");
  const quick = stream(true);
  t.equal(await waiting("x", Promise.resolve(1), quick.fake), 1);
  t.equal(quick.text(), "", "too short to be told");
  const piped = stream(false);
  await t.rejects(waiting("x", Promise.reject(new Error("no")), piped.fake), /no/);
  t.equal(piped.text(), "");
});
