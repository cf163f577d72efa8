// The fuzz targets of the native part, with the sanitizers: each runs its seeds, the inputs that once failed, and mutations of what
// reached new code. A crash, an undefined operation, a leak, a hang, much memory for one input, or a wrong answer fails it.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import t from "tap";
import { ROOT, runCommand } from "../../support/program.ts";

const folder = `${ROOT}packages/rdma-native`;
const failures = mkdtempSync(`${tmpdir()}/weightline-fuzz-`);
/** From WEIGHTLINE_FUZZ_SEED; a fixed one otherwise, so that a failure comes again. */
const seed = process.env["WEIGHTLINE_FUZZ_SEED"] ?? "1";
const LIMIT_MS = 400_000;

/** Targets with the mutations that each runs. The sockets' are slower: a session costs a connection, a thread and some waits. */
const TARGETS: Record<string, number> = {
  descriptor_request: 50_000,
  json: 100_000,
  layout: 100_000,
  safetensors: 100_000,
  tensor_list: 100_000,
  weight_index: 100_000,
  frame: 100_000,
  model_folder: 100_000,
  stream_child: 20_000,
  stream_parent: 15_000,
};

interface Outcome {
  target: string;
  inputs: number;
  leak_checks: number;
  failed: boolean;
  reason: string;
  kept: string;
}

async function run(target: string, words: readonly string[], env: Record<string, string> = {}) {
  const done = await runCommand([`${folder}/build-fuzz/Release/fuzz_${target}`, ...words], {
    env,
    timeoutMs: LIMIT_MS,
  });
  const line = done.stdout.trim().split("\n").at(-1) ?? "";
  if (!line.startsWith("{")) {
    throw new Error(`fuzz_${target} told nothing: ${done.stdout}${done.stderr.slice(-2000)}`);
  }
  return { ...done, line, outcome: JSON.parse(line) as Outcome };
}

/** What a failure leaves for whoever looks: the input in base64, when it is short enough. */
function keptInput(path: string): string {
  return existsSync(path) ? readFileSync(path).toString("base64").slice(0, 4000) : "";
}

t.teardown(() => rmSync(failures, { recursive: true }));

t.test("the driver finds what is planted, and keeps an input that fails again", async (t) => {
  for (const [planted, reason] of [
    ["overflow", "a sanitizer or a check ended it"],
    ["undefined", "a sanitizer or a check ended it"],
    ["memory", "a sanitizer or a check ended it"],
    ["check", "a sanitizer or a check ended it"],
    ["leak", "memory leaked"],
    ["hang", "it did not end within 2000 ms"],
  ] as const) {
    const env = { WEIGHTLINE_PLANTED: planted };
    const limit = ["--limit-ms", "2000"];
    const found = await run("planted", ["--inputs", "400000", "--seed", seed, "--failures", failures, ...limit], env);
    if (planted === "leak" && found.outcome.leak_checks === 0) {
      t.comment("a process that is traced cannot look for leaks");
      continue;
    }
    t.equal(found.code, 1, planted);
    t.equal(found.outcome.reason, reason, planted);
    const again = await run("planted", [...limit, found.outcome.kept], env);
    t.equal(again.outcome.reason, reason, `${planted}: its input fails again`);
    const without = await run("planted", [found.outcome.kept]);
    t.equal(without.outcome.failed, false, `${planted}: and not without the fault`);
  }
});

t.test("every input that once failed is taken as it should be", async (t) => {
  for (const target of readdirSync(`${folder}/fuzz/corpus`)) {
    const files = readdirSync(`${folder}/fuzz/corpus/${target}`).map(
      (name) => `${folder}/fuzz/corpus/${target}/${name}`,
    );
    const done = await run(target, files);
    t.equal(done.outcome.failed, false, `${target}: ${done.stderr.slice(-3000)}`);
    t.ok(done.outcome.inputs >= files.length, `${target}: ${files.length} inputs ran`);
  }
});

t.test("mutations", { jobs: 4, timeout: LIMIT_MS + 20_000 }, async (t) => {
  const targets = readdirSync(`${folder}/build-fuzz/Release`)
    .filter((name) => name.startsWith("fuzz_") && name !== "fuzz_planted")
    .map((name) => name.slice("fuzz_".length));
  t.strictSame(targets.toSorted(), Object.keys(TARGETS).toSorted(), "every target is run");
  await Promise.all(
    Object.entries(TARGETS).map(([target, inputs]) =>
      t.test(target, { timeout: LIMIT_MS }, async (t) => {
        const corpus = `${folder}/fuzz/corpus/${target}`;
        const done = await run(target, [
          "--inputs",
          String(inputs),
          "--seed",
          seed,
          "--corpus",
          corpus,
          "--failures",
          failures,
        ]);
        t.comment(done.line);
        const { outcome } = done;
        t.equal(done.code, 0, `${outcome.reason}\n${done.stderr.slice(0, 6000)}\n${keptInput(outcome.kept)}`);
        t.ok(outcome.inputs >= inputs, `${outcome.inputs} inputs with seed ${seed}`);
      }),
    ),
  );
});
