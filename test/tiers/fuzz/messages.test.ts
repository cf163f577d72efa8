// The mutation tests of messages and records, which the default run has too, with many more mutations: at least 100,000 messages.
import t from "tap";
import { ROOT, runCommand } from "../../support/program.ts";

const MESSAGES = 51_000;
const CONTROL_PLANE_CALLS = 30_000;
const RECORDS = 100_000;
const LIMIT_MS = 560_000;

for (const { name, file, env, atLeast } of [
  {
    name: `${MESSAGES} changed requests of the local API, and as many calls of peers`,
    file: "test/message-mutations.test.ts",
    env: { WEIGHTLINE_MESSAGE_MUTATIONS: String(MESSAGES) },
    atLeast: 20,
  },
  {
    name: `${CONTROL_PLANE_CALLS} changed calls of the control plane`,
    file: "test/control-plane-mutations.test.ts",
    env: { WEIGHTLINE_MESSAGE_MUTATIONS: String(CONTROL_PLANE_CALLS) },
    atLeast: 20,
  },
  {
    name: `${RECORDS} changed records`,
    file: "packages/node-agent/test/record-mutations.test.ts",
    env: { WEIGHTLINE_RECORD_MUTATIONS: String(RECORDS) },
    atLeast: 3,
  },
]) {
  t.test(name, { timeout: LIMIT_MS }, async (t) => {
    const done = await runCommand([process.execPath, "--disable-warning=ExperimentalWarning", `${ROOT}${file}`], {
      env: { ...env, TAP_TIMEOUT: String(LIMIT_MS / 1000) },
      timeoutMs: LIMIT_MS,
    });
    for (const line of done.stdout.split("\n").filter((text) => /^ +# \{/.test(text))) {
      t.comment(line.trim());
    }
    const failed = done.stdout.split("\n").findIndex((line) => line.includes("not ok"));
    t.equal(
      done.code,
      0,
      failed < 0
        ? done.stderr.slice(-3000)
        : done.stdout
            .split("\n")
            .slice(failed, failed + 60)
            .join("\n"),
    );
    t.ok(Number(/# \{ total: (\d+)/.exec(done.stdout)?.[1] ?? 0) >= atLeast, "it ran");
  });
}
