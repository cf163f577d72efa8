// The node as users have it: small tmpfs, dead sockets, long paths, changing names, proxies, a second agent.
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { mxctl, pythonEnvironment, runCommand, startProgram } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const a = await cluster.startAgent("a");
const small = `${cluster.folder}/small.safetensors`;
writeTensors(small, { w: { dtype: "U8", shape: [100_000] } });
const large = `${cluster.folder}/large.safetensors`;
writeTensors(large, { w: { dtype: "U8", shape: [90_868_000] } });
await cluster.mxctl(["load", large, "--model-name", "large"], a);
await cluster.mxctl(["load", small, "--model-name", "small"], a);

/** Runs an agent that must not start; gives what it said. */
async function fails(flags: readonly string[], env: Record<string, string> = {}): Promise<string> {
  const program = startProgram(
    "node-agent",
    [
      "--node-name",
      "x",
      "--bind",
      "127.0.0.1",
      "--port",
      "0",
      "--data-port",
      "0",
      "--metrics-port",
      "0",
      "--store",
      cluster.store("unused"),
      "--socket",
      `${cluster.folder}/x/agent.sock`,
      ...flags,
    ],
    { env },
  );
  const code = await program.exited;
  t.equal(code, 1, program.output());
  return program.output();
}

const cannotMount = process.getuid?.() === 0 ? false : "a tmpfs can be mounted by root alone";
t.test(
  "23: a tmpfs that is too small: refused before the first byte with needed, free, path, way out",
  { skip: cannotMount },
  async (t) => {
    const mount = mkdtempSync("/dev/shm/weightline-small-");
    const mounted = await runCommand(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mount]);
    t.equal(mounted.code, 0, mounted.stderr);
    t.teardown(async () => {
      await runCommand(["umount", "-l", mount]);
      rmSync(mount, { recursive: true });
    });
    const agent = await cluster.startAgent("tiny", ["--store", `${mount}/store`, "--memory-limit", "1GiB"]);
    for (const command of [
      ["load", large, "--model-name", "own"],
      ["pull", "--model-name", "large"],
    ]) {
      const done = await cluster.mxctl(command, agent);
      t.equal(done.code, 1);
      t.match(
        done.stderr,
        new RegExp(`86\\.\\d MiB are needed.*6\\d\\.\\d MiB are free in ${mount}/store.*way out: .*size=`),
        String(command[0]),
      );
      t.same(readdirSync(`${mount}/store/holdings`), [], "nothing half-visible");
    }
    t.equal((await cluster.mxctl(["load", small, "--model-name", "small"], agent)).code, 0, "what fits is taken");
    await agent.program.stop();
  },
);

t.test(
  "a full store by its limit: what nobody uses makes room; what is leased stays, and the newcomer gets the error",
  async (t) => {
    const agent = await cluster.startAgent("full", ["--memory-limit", "120MB"]);
    t.equal((await cluster.mxctl(["pull", "--model-name", "large"], agent)).code, 0);
    const other = `${cluster.folder}/other.safetensors`;
    writeTensors(other, { w: { dtype: "U8", shape: [60_000_000] } });
    const holding = agent.python(
      'import time\nwith agent.acquire(model_name="large") as held:\n    print("held", flush=True)\n    time.sleep(2.5)\n    print(held["w"].data[0])',
    );
    await sleep(700);
    const refused = await cluster.mxctl(["load", other, "--model-name", "other"], agent);
    t.equal(refused.code, 1);
    t.match(refused.stderr, /57\.\d MiB are needed.*the limit is 114\.4 MiB \(--memory-limit\)/);
    await holding;
    const taken = await cluster.mxctl(["load", other, "--model-name", "other"], agent);
    t.equal(taken.code, 0, taken.stderr);
    t.ok(await agent.program.waitFor(/"event":"evicted",.*"why":"room"/));
    await agent.program.stop();
  },
);

t.test(
  "25: after a restart the socket's directory is the same; a dead socket says to mount the directory",
  async (t) => {
    const agent = await cluster.startAgent("restarted");
    const directory = agent.socket.slice(0, agent.socket.lastIndexOf("/"));
    const inode = statSync(directory).ino;
    agent.program.kill("SIGKILL");
    await agent.program.exited;
    t.ok(statSync(agent.socket).isSocket(), "the dead agent left its socket file");
    const dead = await runCommand(
      [
        "python3",
        "-c",
        'import weightline\ntry: weightline.connect().acquire(model_name="m")\nexcept weightline.Unavailable as e: print(e)',
      ],
      { env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }) },
    );
    t.match(dead.stdout, /the socket is dead.*mount the socket's directory, not the socket file/);
    const cli = await mxctl(["--socket", agent.socket, "load", small, "--model-name", "m"]);
    t.equal(cli.code, 4);
    t.match(cli.stderr, /the socket is dead/);
    const again = await cluster.startAgent("restarted", ["--store", agent.store, "--socket", agent.socket]);
    t.equal(statSync(directory).ino, inode);
    t.equal(await again.python('with agent.acquire(model_name="small") as held: print(held.outcome)'), "received");
    await again.program.stop();
  },
);

t.test("26: socket paths of 107 and 108 bytes: the longer of both sockets counts", async (t) => {
  const base = `${cluster.folder}/`;
  const exact = base + "s".repeat(107 - ".fd".length - base.length);
  const agent = await cluster.startAgent("longest", ["--socket", exact]);
  t.equal(await agent.python('with agent.acquire(model_name="small") as held: print(held.outcome)'), "received");
  await agent.program.stop();
  const flag = await fails(["--socket", `${exact}s`]);
  t.match(flag, /has 108 bytes; at most 107 fit.*\(from --socket\)/);
  const env = startProgram("node-agent", ["--validate-config"], { env: { MX_AGENT_SOCKET: `${exact}s` } });
  t.equal(await env.exited, 1);
  t.match(env.output(), /108 bytes.*\(from MX_AGENT_SOCKET\)/);
});

t.test(
  "27: one store, never two nodes: a new name replaces the old at once; a second live node of one name is refused",
  async (t) => {
    const agent = await cluster.startAgent("old-name");
    await cluster.mxctl(["pull", "--model-name", "small"], agent);
    agent.program.kill("SIGKILL");
    await agent.program.exited;
    const renamed = await cluster.startAgent("new-name", ["--store", agent.store]);
    const names = (
      JSON.parse((await cluster.mxctl(["nodes", "--output", "json"])).stdout) as Array<{ name: string }>
    ).map(({ name }) => name);
    t.ok(names.includes("new-name") && !names.includes("old-name"), names.join());
    const twin = startProgram("node-agent", [
      "--node-name",
      "new-name",
      "--control-plane",
      cluster.controlPlane(),
      "--bind",
      "127.0.0.1",
      "--port",
      "0",
      "--data-port",
      "0",
      "--metrics-port",
      "0",
      "--store",
      cluster.store("twin"),
      "--socket",
      `${cluster.folder}/twin/agent.sock`,
      "--log-format",
      "json",
      "--announce-interval",
      "1s",
    ]);
    t.teardown(() => twin.stop());
    await twin.waitFor(new RegExp(`"taken_by":"${renamed.address}"`));
    const port = /"metrics_port":(\d+)/.exec(twin.output())?.[1];
    const ready = await fetch(`http://127.0.0.1:${port}/readyz`);
    t.equal(ready.status, 503);
    t.match(await ready.text(), new RegExp(`another live node is called new-name: ${renamed.address}`));
    await twin.stop();
    await renamed.program.stop();
  },
);

t.test("a second agent on the same store or socket is refused by name", async (t) => {
  t.match(await fails(["--socket", a.socket]), new RegExp(`another agent answers on ${a.socket}.*--socket`));
  const output = await fails(["--store", a.store]);
  t.match(output, /is held by process \d/);
  t.match(output, new RegExp(`\\b${a.program.pid}\\b`), "the first agent's pid");
  t.equal(
    await a.python('with agent.acquire(model_name="small") as held: print(held.outcome)'),
    "held",
    "the first one goes on",
  );
});

t.test("ports that are taken are named with their flag", async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(() => server.close());
  const address = server.address();
  const port = String(typeof address === "object" && address !== null ? address.port : 0);
  for (const flag of ["--port", "--data-port", "--metrics-port"]) {
    t.match(await fails([flag, port]), new RegExp(`${port}.*\\(${flag}\\) cannot be opened.*way out`), flag);
  }
  const controlPlane = startProgram("control-plane", ["--host", "127.0.0.1", "--port", port]);
  t.equal(await controlPlane.exited, 1);
  t.match(controlPlane.output(), /\(--port\) cannot be opened/);
});

t.test("30: proxy variables of the cluster are not obeyed inside it", async (t) => {
  const proxies = {
    http_proxy: "http://127.0.0.1:9",
    https_proxy: "http://127.0.0.1:9",
    grpc_proxy: "http://127.0.0.1:9",
    HTTP_PROXY: "http://127.0.0.1:9",
    HTTPS_PROXY: "http://127.0.0.1:9",
  };
  const other = await createCluster();
  t.teardown(() => other.stop());
  await other.startControlPlane([], { env: proxies });
  const one = await other.startAgent("one", [], { env: proxies });
  const two = await other.startAgent("two", [], { env: proxies });
  const run = (parameters: string[], socket: string) =>
    mxctl(["--endpoint", other.controlPlane(), "--socket", socket, ...parameters], { env: proxies });
  t.equal((await run(["load", small, "--model-name", "m"], one.socket)).code, 0);
  t.equal((await run(["pull", "--model-name", "m"], two.socket)).code, 0);
  t.equal((await run(["pull", "--model-name", "m", "--nodes", "all"], two.socket)).code, 0);
  t.equal(JSON.parse((await run(["nodes", "--output", "json"], one.socket)).stdout).length, 2);
});

t.test(
  "a store that is not on tmpfs, a read-only mount that is none, nonsense settings: refused with the flag",
  async (t) => {
    t.match(await fails(["--store", `${cluster.folder}/disk`]), /--store .* does not lie on tmpfs.*way out/);
    // The kernel says "not there" of a folder that it will not make: looking for its parents for ever is no answer.
    t.match(await fails(["--store", "/proc/none/store"]), /--store \/proc\/none\/store cannot be made.*way out/);
    t.match(
      await fails(["--socket", "/proc/none/agent.sock"]),
      /--socket \/proc\/none\/agent.sock cannot be made.*way out/,
    );
    t.match(await fails(["--store-ro", cluster.folder]), /--store-ro .* is not mounted read-only/);
    t.match(await fails(["--memory-limit", "lots"]), /--memory-limit "lots" is not a size/);
    t.match(await fails(["--port", "70000"]), /--port "70000" is not a port from 0 to 65535/);
    t.match(await fails(["--prot", "1"]), /option --prot is not known; way out: did you mean --port/);
    t.match(await fails([], { MX_AGENT_LINK_RATE: "fast" }), /MX_AGENT_LINK_RATE "fast" is not a rate/);
    writeFileSync(`${cluster.folder}/agent.yaml`, "network:\n  prt: 5\n");
    t.match(
      await fails(["--config", `${cluster.folder}/agent.yaml`]),
      /network.prt is not known; way out: did you mean network.port/,
    );
    t.match(
      await fails(["--host", "127.0.0.1", "--control-plane", "10.1.2.3:8001"]),
      /--host 127.0.0.1 is a loopback address/,
    );
  },
);

t.test(
  "19: a file that shrinks while it is loaded and relayed: load and relay fail, agents live, nobody saw it complete",
  async (t) => {
    const agent = await cluster.startAgent("shrinking", ["--load-threads", "1"]);
    const child = await cluster.startAgent("relaying");
    const path = `${cluster.folder}/shrinks.safetensors`;
    const size = 600_000_000;
    const header = JSON.stringify({ w: { dtype: "U8", shape: [size], data_offsets: [0, size] } });
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    writeFileSync(path, Buffer.concat([length, Buffer.from(header)]));
    truncateSync(path, 8 + header.length + size);
    const loading = cluster.mxctl(["load", path, "--model-name", "shrinks"], agent);
    let verified = 0n;
    for (let i = 0; i < 3000 && verified < 20_000_000n; i++) {
      await sleep(1);
      verified = (await agent.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
    }
    const relaying = cluster.mxctl(["pull", "--model-name", "shrinks"], child);
    const descriptor = openSync(path, "r+");
    truncateSync(path, 100_000_000);
    closeSync(descriptor);
    const done = await loading;
    t.equal(done.code, 1, done.stdout);
    t.match(
      done.stderr,
      new RegExp(
        `${path} changed while it was loaded: it ends at offset \\d+, \\d+ of ${size + 8 + header.length} bytes are missing`,
      ),
    );
    t.not((await relaying).code, 0, "the relay failed too");
    for (const node of [agent, child]) {
      const status = await node.client.status({});
      t.equal(status.notReady.length, 0, "agent and mover live");
      t.equal(status.moverRestarts, 0n);
    }
    for (let i = 0; i < 50 && (await agent.client.status({})).holdings.length > 0; i++) {
      await sleep(100);
    }
    t.same(readdirSync(`${agent.store}/holdings`), [], "nothing is left");
    await child.program.stop();
    await agent.program.stop();
  },
);

t.test("the unary calls of the local API with curl, and nonsense on the socket", async (t) => {
  const curl = (...parameters: string[]) =>
    runCommand(["curl", "-sS", "--max-time", "5", "--unix-socket", a.socket, ...parameters]);
  const status = await curl(
    "-H",
    "content-type: application/json",
    "-d",
    "{}",
    "http://localhost/weightline.local.v1.AgentService/Status",
  );
  t.match(JSON.parse(status.stdout), { node: "a", state: "NODE_STATE_READY" });
  const evict = await curl(
    "-H",
    "content-type: application/json",
    "-d",
    '{"wanted":{"model":{"modelName":"none"}}}',
    "http://localhost/weightline.local.v1.AgentService/Evict",
  );
  t.match(JSON.parse(evict.stdout), { code: "not_found", message: "this node holds no none, rank 0" });
  const unknown = await curl(
    "-H",
    "content-type: application/json",
    "-d",
    '{"wanted":{"modl":{}}}',
    "http://localhost/weightline.local.v1.AgentService/Evict",
  );
  t.match(JSON.parse(unknown.stdout).code, /invalid_argument/);
  const cut = await curl(
    "-H",
    "content-type: application/json",
    "-d",
    '{"wanted":',
    "http://localhost/weightline.local.v1.AgentService/Evict",
  );
  t.match(JSON.parse(cut.stdout).code, /invalid_argument/);
  writeFileSync(`${cluster.folder}/big.json`, `{"wanted":{"model":{"modelName":"${"x".repeat(5 * 1024 * 1024)}"}}}`);
  const big = await curl(
    "-H",
    "content-type: application/json",
    "--data-binary",
    `@${cluster.folder}/big.json`,
    "-o",
    "/dev/null",
    "-w",
    "%{http_code}",
    "http://localhost/weightline.local.v1.AgentService/Evict",
  );
  t.not(big.stdout, "200");
  const empty = await curl(
    "-H",
    "content-type: application/json",
    "-d",
    '{"wanted":{"model":{"modelName":""}}}',
    "http://localhost/weightline.local.v1.AgentService/Evict",
  );
  t.match(JSON.parse(empty.stdout), { code: "invalid_argument", message: "wanted.model.model_name is required" });
  for (const garbage of ["GET / HTTP/9\r\n\r\n", "\0".repeat(1000), `POST /${"x".repeat(100_000)} HTTP/1.1\r\n\r\n`]) {
    await runCommand(
      [
        "python3",
        "-c",
        "import socket,sys\ns=socket.socket(socket.AF_UNIX); s.settimeout(3); s.connect(sys.argv[1])\ntry:\n s.sendall(sys.stdin.buffer.read()); s.recv(1000)\nexcept OSError: pass",
        a.socket,
      ],
      { input: garbage },
    );
  }
  mkdirSync(`${cluster.folder}/ok`);
  t.equal(
    await a.python('with agent.acquire(model_name="small") as held: print(held.outcome)'),
    "held",
    "the agent goes on",
  );
});

t.test("64 silent connections of one process do not keep another out", async (t) => {
  const silent = await runCommand(
    [
      "python3",
      "-c",
      `import socket,sys,subprocess\nall=[]\nfor i in range(64):\n s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); all.append(s)\nprint(subprocess.run([sys.executable, "-c", "import weightline\\nwith weightline.connect().acquire(model_name='small') as held: print(held.outcome)"], capture_output=True, text=True).stdout)`,
      a.socket,
    ],
    { env: pythonEnvironment({ MX_AGENT_SOCKET: a.socket }) },
  );
  t.equal(silent.stdout.trim(), "held");
});
