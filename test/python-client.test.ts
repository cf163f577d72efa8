import t from "tap";
import { pythonEnvironment, ROOT, runCommand } from "./support/program.ts";

t.test("the Python client's own tests", async (t) => {
  const done = await runCommand(["python3", "-m", "unittest", "discover", "-s", `${ROOT}python/weightline/tests`], {
    env: pythonEnvironment(),
    timeoutMs: 120_000,
  });
  t.equal(done.code, 0, done.stderr);
  const ran = Number(/Ran (\d+) tests/.exec(done.stderr)?.[1] ?? 0);
  t.ok(ran >= 12, `${ran} tests ran`);
});

t.test("it needs the standard library alone", async (t) => {
  const alone = await runCommand(["python3", "-S", "-c", "import weightline; print(weightline.connect('/x').path)"], {
    env: { PYTHONPATH: `${ROOT}python/weightline` },
  });
  t.equal(alone.stdout.trim(), "/x", alone.stderr);
});
