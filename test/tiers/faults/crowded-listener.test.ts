// A crowd of one caller's connections costs the listener the same for each, however many wait: others come after it.
import { readdirSync, readFileSync } from "node:fs";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { startCommand } from "../../support/program.ts";
import { trace } from "../../support/tracing.ts";

const CONNECTIONS = 1500;
/** Looks at a connection that waits, and at the socket and its wake-up: a few for each. */
const LOOKS_MAX = 6 * CONNECTIONS;

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const agent = await cluster.startAgent("a");

function listenerThread(): string {
  const tasks = `/proc/${agent.program.pid}/task`;
  const found = readdirSync(tasks).find(
    (task) => readFileSync(`${tasks}/${task}/comm`, "utf8").trim() === "wl-listener",
  );
  if (found === undefined) {
    throw new Error("the agent has no thread wl-listener");
  }
  return found;
}

t.test("those who wait are not looked at anew for each that comes", async (t) => {
  const thread = listenerThread();
  const tracing = await trace(agent.program.pid, `${cluster.folder}/looks`, { calls: ["poll", "ppoll", "accept4"] });
  const crowd = startCommand([
    "python3",
    "-u",
    "-c",
    `import socket, sys, time
all = []
for i in range(${CONNECTIONS}):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); all.append(s)
print("all are there", flush=True)
time.sleep(60)`,
    agent.socket,
  ]);
  await crowd.waitFor(/all are there/);
  t.ok(await agent.client.status({}), "another is answered, after those before it");
  crowd.kill("SIGKILL");
  await crowd.exited;
  await tracing.stop();
  const lines = tracing
    .text()
    .split("\n")
    .filter((line) => line.startsWith(`${thread} `));
  const count = (call: RegExp) => lines.filter((line) => call.test(line)).length;
  t.ok(count(/accept4\(/) >= CONNECTIONS, "it was the listener that took them");
  t.ok(count(/p?poll\(/) < LOOKS_MAX, `${count(/p?poll\(/)} looks for ${CONNECTIONS} connections`);
});
