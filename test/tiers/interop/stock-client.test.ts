// Unmodified stock clients, two versions of them, against a real control plane and a real agent.
import { writeFileSync } from "node:fs";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { createRedisServer } from "../../support/redis-server.ts";
import { writeTensors } from "../../support/safetensors-file.ts";
import { runStock, startStock, VERSIONS } from "./stock-python.ts";

const REPUBLISHES = 200;
const MODEL = "org/Held-Model";

interface RoundTrip {
  client: string;
  sourceId: string;
  intact: Record<string, boolean>;
  ready: unknown[];
  [fact: string]: unknown;
}

interface AgentSource {
  instances: Array<{ workerId: string; sourceId: string }>;
  computed: string;
  [fact: string]: unknown;
}

/** The newest is tried on every backend. */
const CASES = [...VERSIONS.map((version) => [version, "memory"] as const), [VERSIONS[0], "redis"] as const];

for (const [version, backend] of CASES) {
  const newest = version === VERSIONS[0];
  t.test(`modelexpress ${version}, ${backend}`, async (t) => {
    const cluster = await createCluster();
    const redis = backend === "redis" ? await createRedisServer() : undefined;
    t.teardown(async () => {
      await cluster.stop();
      await redis?.remove();
    });
    const env: Record<string, string> = {
      MX_METADATA_BACKEND: backend,
      ...(redis === undefined ? {} : { REDIS_URL: redis.url }),
    };
    let controlPlane = await cluster.startControlPlane([], { env });
    const address = cluster.controlPlane();
    const agent = await cluster.startAgent("a");
    const path = `${cluster.folder}/m.safetensors`;
    writeTensors(path, { b: { dtype: "F32", shape: [4] }, a: { dtype: "BF16", shape: [2, 3] } });
    await cluster.load(agent, path, MODEL);
    const [holding] = (await agent.client.status({})).holdings;

    t.test("publish, list, get, update: every field comes back as it was", async (t) => {
      const said = await runStock<RoundTrip>(version, "round_trip", [address]);
      t.equal(said.client, "MxClient");
      t.same(said.intact, { tensors: true, session: true, artifact: true, deprecated: true, large: true });
      t.match(said, {
        readyBefore: 0,
        allBefore: 5,
        updated: true,
        survivesHeartbeat: true,
        status: "SOURCE_STATUS_READY",
        fresh: true,
        unknown: false,
        missing: false,
        refused: "PublishMetadata failed: identity.model_name is required",
      });
      t.same(said.ready, [
        {
          workerId: "tensors",
          sourceId: said.sourceId,
          rank: 3,
          model: "org/Stock-Model",
          accelerator: "cuda",
          topology: newest ? { rack: "r7", block: "b1" } : null,
          load: newest ? 0 : null,
          step: 42,
        },
      ]);
      const listed = await cluster.mxctl(["sources", "--output", "json"]);
      t.equal(listed.code, 0, listed.stderr);
      const sources = JSON.parse(listed.stdout) as Array<{
        source_id: string;
        workers: Array<{ worker_id: string; status: string }>;
      }>;
      const source = sources.find((one) => one.source_id === said.sourceId);
      t.same(
        source?.workers.map(({ worker_id }) => worker_id).toSorted(),
        Object.keys(said.intact).toSorted(),
        "mxctl sources has them all",
      );
      t.same(
        source?.workers.filter(({ status }) => status === "ready").map(({ worker_id }) => worker_id),
        ["tensors"],
      );
    });

    t.test("the server's source ids are those that the client computes itself", async (t) => {
      const pairs = await runStock<Array<[string, string]>>(version, "source_ids", [address]);
      t.equal(new Set(pairs.flat()).size, 5);
      for (const [given, computed] of pairs) {
        t.equal(given, computed);
      }
    });

    t.test(
      "what an agent holds is a READY worker of accelerator cpu, whose manifest is read from the agent",
      async (t) => {
        const said = await runStock<AgentSource>(version, "agent_source", [address, MODEL]);
        t.match(said.instances, [{ workerId: `${holding?.holdingId}-0`, rank: 0, model: MODEL, accelerator: "cpu" }]);
        t.equal(said.instances[0]?.sourceId, said.computed);
        t.match(said, {
          withoutKind: 0,
          gpuTakesIt: false,
          got: {
            found: true,
            kind: "files",
            accelerator: "cpu",
            status: "SOURCE_STATUS_READY",
            endpoint: agent.address,
          },
          tensors: [
            ["a", "BF16", 12],
            ["b", "F32", 16],
          ],
          mismatch: ["FAILED_PRECONDITION", `mx_source_id mismatch: expected ${said.computed}, got ${"0".repeat(16)}`],
          artifact: ["NOT_FOUND", "artifact manifest is not available for this worker"],
        });
        if (newest) {
          t.same(said["leased"], ["a", "b"]);
          t.match(said["otherWorker"], ["FAILED_PRECONDITION", /^worker_id mismatch: expected /]);
        }
        t.equal((await agent.client.status({})).leases, 0, "its lease was released");
      },
    );

    t.test("its backend without any server reads the same from the agent alone", async (t) => {
      t.match(await runStock(version, "without_server", [agent.address, MODEL]), {
        client: "MxK8sServiceClient",
        found: true,
        accelerator: "cpu",
        agent: "a",
        tensors: ["a", "b"],
        unknown: ["FAILED_PRECONDITION", /^mx_source_id mismatch: /],
        otherRank: /worker_rank mismatch: expected 1, got 0/,
      });
    });

    t.test("a racing stock reader never misses a READY worker that a stock client publishes again", async (t) => {
      const writer = startStock(version, "republish", [address, "raced", String(REPUBLISHES)]);
      t.teardown(() => writer.stop());
      await writer.waitFor(/^ready$/m);
      const reader = startStock(version, "race", [address, "raced"]);
      t.teardown(() => reader.stop());
      await reader.waitFor(/^reading$/m);
      writer.say("go\n");
      t.match(JSON.parse((await writer.waitFor(/^\{.*\}$/m))[0]), { publishes: REPUBLISHES, ready: true });
      reader.end();
      const seen = JSON.parse((await reader.waitFor(/^\{.*\}$/m))[0]) as Record<string, number>;
      t.ok((seen["versions"] ?? 0) > 5, `they raced: ${seen["versions"]} versions in ${seen["rounds"]} rounds`);
      t.equal(seen["missed"], 0);
    });

    t.test("with a bearer token of its own", { skip: newest ? false : "this version has none" }, async (t) => {
      const token = `${cluster.folder}/token`;
      writeFileSync(token, "abc.def.ghi\n");
      const said = await runStock<RoundTrip>(version, "round_trip", [address], { MX_AUTH_TOKEN_PATH: token });
      t.ok(said["updated"]);
    });

    t.test(
      "its selectors order what is listed: idle, unknown, busy",
      { skip: newest ? false : "no loads" },
      async (t) => {
        t.same(await runStock(version, "selection", [address]), ["idle", "unknown", "busy"]);
      },
    );

    t.test(
      "its model cache's client hears at once that there is none",
      { skip: newest ? false : "it has none" },
      async (t) => {
        const words = /downloads no models/;
        t.match(await runStock(version, "models", [address]), {
          ensure: ["UNAVAILABLE", words],
          list: ["UNAVAILABLE", words],
          quick: true,
        });
      },
    );

    t.test(
      "a publisher's thread keeps a worker READY, and publishes again when a control plane forgot it",
      async (t) => {
        const publisher = startStock(version, "heartbeats", [address]);
        t.teardown(() => publisher.stop());
        const first = JSON.parse((await publisher.waitFor(/^\{"now": "ready".*\}$/m))[0]);
        t.match(first, { publishes: 1, ready: [{ workerId: "beating", load: newest ? 0.5 : null }] });
        controlPlane.kill("SIGKILL");
        await controlPlane.exited;
        await publisher.waitFor(/"now": "away"/);
        const port = address.split(":")[1] ?? "";
        controlPlane = await cluster.startControlPlane(["--port", port]);
        t.equal(cluster.controlPlane(), address, "at the same address, with nothing in its memory");
        // Before 0.7 a refused heartbeat changes nothing.
        if (newest) {
          t.match(JSON.parse((await publisher.waitFor(/^\{"now": "ready", "publishes": 2.*\}$/m))[0]), {
            publishes: 2,
          });
          publisher.end();
          t.match(JSON.parse((await publisher.waitFor(/^\{"stopped".*\}$/m))[0]), {
            stopped: "SOURCE_STATUS_STALE",
            publishes: 2,
          });
        } else {
          t.match(JSON.parse((await publisher.waitFor(/^\{"now": "none".*\}$/m))[0]), { publishes: 1 });
        }
      },
    );
  });
}
