// Field case 32, the comma list: its first entry is dead or frozen, and agents reach the second in under a second.
import t from "tap";
import { createCluster, freePort } from "../../support/cluster.ts";
import { processState, until } from "../../support/processes.ts";

/** The case's own limit. */
const REACHED_WITHIN_MS = 1000;

/** When a line with this text was logged, in Unix ms. */
function loggedAt(output: string, text: string): number {
  const line = output.split("\n").find((candidate) => candidate.includes(text)) ?? "{}";
  return (JSON.parse(line) as { time?: number }).time ?? 0;
}

for (const how of ["dead", "frozen"]) {
  t.test(`the first entry is ${how}`, async (t) => {
    const cluster = await createCluster();
    const first = how === "frozen" ? await cluster.startControlPlane() : undefined;
    const firstAddress = first === undefined ? `127.0.0.1:${await freePort()}` : cluster.controlPlane();
    t.teardown(async () => {
      first?.kill("SIGCONT");
      await cluster.stop();
    });
    if (first !== undefined) {
      first.kill("SIGSTOP");
      await until("it stands still", () => processState(first.pid) === "T");
    }
    await cluster.startControlPlane();
    const list = `${firstAddress},${cluster.controlPlane()}`;
    const agent = await cluster.startAgent("a", ["--control-plane", list]);
    const tookMs =
      loggedAt(agent.program.output(), '"control-plane-back"') - loggedAt(agent.program.output(), '"msg":"ready"');
    t.comment(`${how}: after ${tookMs} ms`);
    t.ok(tookMs < REACHED_WITHIN_MS, `announced after ${tookMs} ms`);
    const started = performance.now();
    const done = await agent.python(
      'try: agent.acquire(model_name="none", timeout=5)\nexcept weightline.Error as e: print(type(e).__name__)',
    );
    t.equal(
      done,
      "NotFound",
      `a lookup is answered, ${Math.round(performance.now() - started)} ms with Python's start`,
    );
    t.equal((await agent.client.status({})).controlPlane, "connected");
  });
}
