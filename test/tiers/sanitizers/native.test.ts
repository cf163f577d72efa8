// The addon's own tests, hostile peers among them, under the address and undefined-behaviour sanitizers.
import { readdirSync } from "node:fs";
import t from "tap";
import { ROOT, runCommand } from "../../support/program.ts";

const folder = `${ROOT}packages/rdma-native/test`;
const tests = readdirSync(folder).filter((name) => name.endsWith(".test.ts"));

async function library(name: string): Promise<string> {
  return (await runCommand(["c++", `-print-file-name=${name}`])).stdout.trim();
}

const environment = {
  WEIGHTLINE_NATIVE_BUILD: "build-asan",
  LD_PRELOAD: `${await library("libasan.so")}:${await library("libubsan.so")}`,
  // Node itself leaves memory to its end; what the addon leaks shows in the tests' own counts.
  ASAN_OPTIONS: "detect_leaks=0:abort_on_error=1:handle_segv=1",
  UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
  TAP_TIMEOUT: "300",
};

t.test("the sanitizers are there, and see what they must", async (t) => {
  const built = await runCommand(
    [
      process.execPath,
      "--input-type=module-typescript",
      "-e",
      `import { native } from "${ROOT}packages/rdma-native/src/index.ts"; console.log(native.buildInfo().build)`,
    ],
    { env: environment },
  );
  t.equal(built.stdout.trim(), "sanitizer", built.stderr);
});

for (const name of tests) {
  t.test(name, async (t) => {
    const done = await runCommand([process.execPath, "--disable-warning=ExperimentalWarning", `${folder}/${name}`], {
      env: environment,
      timeoutMs: 280_000,
    });
    t.equal(
      done.code,
      0,
      `${done.stdout
        .split("\n")
        .filter((line) => line.includes("not ok"))
        .join("\n")}\n${done.stderr.slice(-3000)}`,
    );
    t.notMatch(done.stderr, /AddressSanitizer|runtime error:/);
    t.ok(Number(/# \{ total: (\d+)/.exec(done.stdout)?.[1] ?? 0) > 5, "it ran");
  });
}
