// Field case 32: all control planes are replaced, and the new ones have other addresses behind the same name. The agents have a file of
// the test's own for /etc/hosts, in a mount namespace of theirs.
import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { NodeState } from "@weightline/proto/common";
import { NodeService } from "@weightline/proto/node";
import { createGrpcChannel, parseAddress } from "@weightline/runtime";
import t from "tap";
import { createCluster, freePort } from "../../support/cluster.ts";
import { processState, until } from "../../support/processes.ts";
import { type ProgramOptions, type RunningProgram, startProgram } from "../../support/program.ts";

const NAME = "control-plane.weightline.test";
const OLD = ["127.0.0.2", "127.0.0.3"];
const NEW = ["127.0.0.4", "127.0.0.5"];
const START_TIMEOUT_MS = 60_000;
/** The case's own limit, for agents that announce every 10 s. */
const ARRIVES_WITHIN_MS = 15_000;

/** Past the pings that find a frozen connection, and several announces that find nobody. */
const REDIALLED_AFTER_MS = 15_000;

/** States of the nodes that a control plane knows, by name. */
async function nodesAt(address: string): Promise<Record<string, NodeState>> {
  const channel = createGrpcChannel({ addresses: [parseAddress(address, "address")] });
  try {
    const { nodes } = await channel.client(NodeService).listNodes({}, { timeoutMs: 20_000 });
    return Object.fromEntries(nodes.map(({ name, state }) => [name, state]));
  } finally {
    channel.close();
  }
}

/** `long`: the name changes only when the agents have given up the connections that they had, and dial the old ones again. */
const CASES = [
  { how: "stopped", signal: "SIGKILL", long: false },
  { how: "frozen", signal: "SIGSTOP", long: false },
  { how: "frozen for long", signal: "SIGSTOP", long: true },
] as const;

for (const { how, signal, long } of CASES) {
  t.test(`all control planes are ${how}, and the name has new addresses: announces arrive there`, async (t) => {
    const cluster = await createCluster();
    const programs: RunningProgram[] = [];
    t.teardown(async () => {
      for (const program of programs) {
        program.kill("SIGCONT");
      }
      await Promise.all(programs.map((program) => program.stop()));
      await cluster.stop();
    });
    const port = await freePort();
    const start = async (host: string) => {
      const flags = ["--host", host, "--port", String(port), "--metrics-port", "0", "--log-format", "json"];
      const program = startProgram("control-plane", flags);
      programs.push(program);
      await program.waitFor(/"msg":"ready"/, START_TIMEOUT_MS);
      return program;
    };
    const hosts = `${cluster.folder}/hosts`;
    const rename = (addresses: readonly string[]) =>
      writeFileSync(hosts, ["127.0.0.1 localhost", ...addresses.map((address) => `${address} ${NAME}`), ""].join("\n"));
    rename(OLD);
    const inside: ProgramOptions = {
      wrapper: ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts],
    };
    const old = await Promise.all(OLD.map(start));
    const known = (addresses: readonly string[]) =>
      Promise.all(addresses.map((host) => nodesAt(`${host}:${port}`))).then((all) => Object.assign({}, ...all));

    const flags = ["--control-plane", `${NAME}:${port}`, "--announce-interval", "10s"];
    const agents = await Promise.all(["a", "b"].map((agent) => cluster.startAgent(agent, flags, inside)));
    await until("both nodes at the old ones", async () => Object.keys(await known(OLD)).length === 2);

    for (const program of old) {
      program.kill(signal);
    }
    if (signal === "SIGSTOP") {
      await until("they stand still", () => old.every(({ pid }) => processState(pid) === "T"));
    } else {
      await Promise.all(old.map(({ exited }) => exited));
    }
    await Promise.all(NEW.map(start));
    t.same(await known(NEW), {}, "the new ones know nobody");
    if (long) {
      await Promise.all(agents.map(({ program }) => program.waitFor(/"event":"control-plane-away"/, 60_000)));
      await sleep(REDIALLED_AFTER_MS);
      t.same(await known(NEW), {}, "nobody found them by then");
    }
    rename(NEW);
    const changedAt = performance.now();
    const ready = { a: NodeState.READY, b: NodeState.READY };
    while (JSON.stringify(Object.entries(await known(NEW)).sort()) !== JSON.stringify(Object.entries(ready))) {
      if (performance.now() - changedAt > 4 * ARRIVES_WITHIN_MS) {
        throw new Error(
          `nothing arrives:\n${agents
            .map(({ program }) => program.output())
            .join("\n")
            .slice(-4000)}`,
        );
      }
      await sleep(100);
    }
    const tookMs = Math.round(performance.now() - changedAt);
    t.comment(`${how}: arrived after ${tookMs} ms`);
    t.ok(tookMs < ARRIVES_WITHIN_MS, `after ${tookMs} ms`);
    if (signal === "SIGSTOP") {
      t.ok(
        old.every(({ pid }) => processState(pid) === "T"),
        "the old ones stand still all the same",
      );
    }
  });
}
