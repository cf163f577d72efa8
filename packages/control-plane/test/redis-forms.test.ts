// Redis as clusters have it: with a user and a database, with TLS, behind sentinels, as a cluster. All real, on loopback.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createRedisDirectory, type Directory, parseRedisUrl } from "@weightline/control-plane";
import { createLogger } from "@weightline/runtime";
import t, { type Test } from "tap";
import { freePort } from "../../../test/support/cluster.ts";
import { ROOT, type RunningProgram, runCommand, startCommand } from "../../../test/support/program.ts";
import { createRedisServer } from "../../../test/support/redis-server.ts";
import { eventually, listed, ready, SOURCE } from "./stock-workers.ts";

const log = createLogger({ program: "test", level: "error", format: "json", file: "/dev/null" });
const READY_MS = 15_000;
/** What docs/redis.md says that the directory's user needs. */
const GRANTS = /needs\n`([^`]+)`/.exec(readFileSync(`${ROOT}docs/redis.md`, "utf8"))?.[1]?.split(" ") ?? [];

async function open(t: Test, url: string, failures: string[] = [], ca?: string): Promise<Directory> {
  const directory = createRedisDirectory({
    address: parseRedisUrl(url),
    ca,
    timeoutMs: 1000,
    heartbeatTimeoutMs: 90_000,
    gcTimeoutMs: 3_600_000,
    statusTtlMs: 3_600_000,
    announceIntervalMs: 10_000,
    reaperIntervalMs: 30_000,
    observer: { failed: (kind) => failures.push(kind), reconnected: () => undefined },
    log,
  });
  t.teardown(() => directory.close());
  await directory.ready();
  return directory;
}

/** A folder of the test's own, and redis-servers on loopback that end with it. */
function servers(t: Test) {
  const folder = mkdtempSync(join(tmpdir(), "wl-redis-"));
  const running: RunningProgram[] = [];
  t.teardown(async () => {
    await Promise.all(running.map((program) => program.stop()));
    rmSync(folder, { recursive: true, force: true });
  });
  return {
    folder,
    async start(command: readonly string[], pattern = /eady to accept connections/): Promise<RunningProgram> {
      const program = startCommand(["redis-server", ...command, "--save", "", "--bind", "127.0.0.1"], { cwd: folder });
      running.push(program);
      await program.waitFor(pattern, READY_MS);
      return program;
    },
  };
}

t.test("a user with a password and what the documentation grants, and a database by its number", async (t) => {
  t.match(GRANTS, ["+@read"], "the documentation was read");
  const server = await createRedisServer();
  t.teardown(() => server.remove());
  await server.cli("ACL", "SETUSER", "mx", "on", ">p@ss/word", "~mx:*", ...GRANTS);
  await server.cli("ACL", "SETUSER", "default", "off");
  const user = `user=mx&pass=${encodeURIComponent("p@ss/word")}&db=2`;
  const directory = await open(t as Test, `unix://${server.socket}?${user}`);
  await ready(directory, "w");
  t.same(await listed(directory), ["w"]);
  await directory.health();
  t.equal((await directory.sources("")).length, 1);
  const asUser = ["--user", "mx", "--pass", "p@ss/word", "-s", server.socket];
  t.equal((await runCommand(["redis-cli", ...asUser, "-n", "2", "EXISTS", `mx:source:${SOURCE}`])).stdout.trim(), "1");
  t.equal((await runCommand(["redis-cli", ...asUser, "-n", "0", "EXISTS", `mx:source:${SOURCE}`])).stdout.trim(), "0");
  t.equal((await directory.near("Org/Model")).length, 0);
  t.same(await directory.nodes(), []);
  t.match(await directory.size(), { workers: 1 });
  const failures: string[] = [];
  const stranger = await open(t as Test, `unix://${server.socket}?user=mx&pass=wrong`, failures);
  await t.rejects(stranger.health(), { code: "Unavailable" });
  await t.rejects(listed(stranger), { code: "Unavailable" });
});

t.test("rediss: with the authority's file; refused without", async (t) => {
  const { folder, start } = servers(t as Test);
  const config = join(folder, "openssl.cnf");
  writeFileSync(config, "[req]\ndistinguished_name=n\n[n]\n[v3]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n");
  const made = await runCommand([
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
    "-subj",
    "/CN=redis",
    "-config",
    config,
    "-extensions",
    "v3",
    "-keyout",
    join(folder, "key.pem"),
    "-out",
    join(folder, "cert.pem"),
  ]);
  t.equal(made.code, 0, made.stderr);
  const port = await freePort();
  await start([
    ...["--port", "0", "--tls-port", String(port), "--tls-auth-clients", "no"],
    ...["--tls-cert-file", join(folder, "cert.pem"), "--tls-key-file", join(folder, "key.pem")],
    ...["--tls-ca-cert-file", join(folder, "cert.pem")],
  ]);
  const directory = await open(
    t as Test,
    `rediss://localhost:${port}`,
    [],
    readFileSync(join(folder, "cert.pem"), "utf8"),
  );
  await ready(directory, "w");
  t.same(await listed(directory), ["w"]);
  const blind = await open(t as Test, `rediss://localhost:${port}`);
  await t.rejects(blind.health(), { code: "Unavailable" }, "an authority that nobody named is not believed");
  const plain = await open(t as Test, `redis://localhost:${port}`);
  await t.rejects(plain.health(), { code: "Unavailable" });
});

t.test("sentinels: the primary is found, and the next one after it died", async (t) => {
  const { start } = servers(t as Test);
  const [primaryPort, replicaPort, sentinelPort] = [await freePort(), await freePort(), await freePort()];
  const primary = await start(["--port", String(primaryPort)]);
  const replica = await start(["--port", String(replicaPort), "--replicaof", `127.0.0.1 ${primaryPort}`]);
  await replica.waitFor(/MASTER <-> REPLICA sync: Finished/, READY_MS);
  const config = join(mkdtempSync(join(tmpdir(), "wl-sentinel-")), "sentinel.conf");
  t.teardown(() => rmSync(join(config, ".."), { recursive: true, force: true }));
  writeFileSync(
    config,
    [
      `port ${sentinelPort}`,
      `sentinel monitor main 127.0.0.1 ${primaryPort} 1`,
      "sentinel down-after-milliseconds main 300",
      "sentinel failover-timeout main 2000",
      "",
    ].join("\n"),
  );
  const sentinel = startCommand(["redis-server", config, "--sentinel"]);
  t.teardown(() => sentinel.stop());
  await sentinel.waitFor(/\+slave slave/, READY_MS);
  const failures: string[] = [];
  const directory = await open(t as Test, `redis-sentinel://127.0.0.1:${sentinelPort}/main`, failures);
  await ready(directory, "before");
  t.same(await listed(directory), ["before"]);
  primary.kill("SIGKILL");
  await primary.exited;
  await eventually(() => ready(directory, "after"));
  t.ok(failures.length > 0, "it was away meanwhile");
  t.ok((await listed(directory)).includes("after"));
  const role = await runCommand(["redis-cli", "-p", String(replicaPort), "ROLE"]);
  t.match(role.stdout, /^master/, "the replica has taken over");
});

t.test("a cluster: every key in one slot, so that each write stays one", async (t) => {
  const { start } = servers(t as Test);
  const ports = [await freePort(), await freePort(), await freePort()];
  for (const port of ports) {
    const busPort = String(await freePort());
    await start([
      ...["--port", String(port), "--cluster-enabled", "yes", "--cluster-config-file", `nodes-${port}.conf`],
      ...["--cluster-port", busPort],
    ]);
  }
  const addresses = ports.map((port) => `127.0.0.1:${port}`);
  const made = await runCommand(["redis-cli", "--cluster", "create", ...addresses, "--cluster-yes"], {
    timeoutMs: 30_000,
  });
  t.match(made.stdout, /All 16384 slots covered/, made.stdout + made.stderr);
  const directory = await open(t as Test, `redis-cluster://${addresses.slice(1).join(",")}`);
  await eventually(() => ready(directory, "w"));
  await ready(directory, "a{b}c");
  t.same((await listed(directory)).sort(), ["a{b}c", "w"]);
  t.equal((await directory.sources(""))[0]?.workers.length, 2);
  t.ok(await directory.worker(SOURCE, "a{b}c"));
  await directory.health();
  const keys = await Promise.all(ports.map((port) => runCommand(["redis-cli", "-p", String(port), "KEYS", "*"])));
  const holders = keys.map(({ stdout }) => stdout.trim()).filter((stdout) => stdout !== "");
  t.equal(holders.length, 1, "one node has them all");
  t.match(holders[0], new RegExp(`\\{mx\\}:source:${SOURCE}:w`));
});
