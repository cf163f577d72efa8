// Servers that are away, frozen or slow, and people who leave.
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { NodeState } from "@weightline/proto/common";
import { AgentService } from "@weightline/proto/local";
import { NodeService } from "@weightline/proto/node";
import { createGrpcServer, mountLocalRpc, route, WeightlineError } from "@weightline/runtime";
import fastify from "fastify";
import t from "tap";
import { mxctl, ROOT, runCommand, startProgram } from "../../../test/support/program.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-silence-`);
let calls = 0;
let unavailable = 0;
const controlPlane = await createGrpcServer({
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
  routes: [
    route(NodeService, {
      listNodes() {
        calls += 1;
        if (unavailable > 0) {
          unavailable -= 1;
          throw new WeightlineError("Unavailable", "not now");
        }
        return { nodes: [] };
      },
      listTransfers() {
        calls += 1;
        return { transfers: [], silentNodes: [] };
      },
      async *fillNodes() {
        yield { node: { node: "n1", done: true } };
      },
    }),
  ],
});
const endpoint = `127.0.0.1:${controlPlane.port}`;

// Takes connections and never answers, as a stopped process does.
const frozen = createServer(() => undefined);
await new Promise<void>((resolve) => frozen.listen(`${folder}/frozen.sock`, resolve));
const frozenPort = createServer(() => undefined);
await new Promise<void>((resolve) => frozenPort.listen(0, "127.0.0.1", resolve));

const slow = fastify();
let statusCalls = 0;
mountLocalRpc(slow, {
  maxMessageBytes: 1 << 20,
  shutdownSignal: new AbortController().signal,
  routes: [
    route(AgentService, {
      async *load(_request, { signal }) {
        yield { event: { case: "progress", value: { state: "loading", verifiedBytes: 1n, totalBytes: 2n } } };
        await sleep(1500, undefined, { signal });
        yield { event: { case: "loaded", value: { sourceId: "f".repeat(16) } } };
      },
      status() {
        statusCalls += 1;
        return { node: "n1", state: NodeState.READY };
      },
    }),
  ],
});
await slow.listen({ path: `${folder}/slow.sock` });

t.teardown(async () => {
  await controlPlane.stop(0);
  await slow.close();
  frozen.close();
  frozenPort.close();
  rmSync(folder, { recursive: true });
});

t.test(
  "an agent that does not answer ends every command: exit 4 for those that follow, 1 for a deadline",
  async (t) => {
    const commands: Array<[string[], number]> = [
      [["load", "/x", "--model-name", "m"], 4],
      [["pull", "--model-name", "m"], 4],
      [["health", "--only", "node-agent"], 4],
      [["evict", "--model-name", "m"], 1],
      [["drain"], 1],
    ];
    for (const [command, exit] of commands) {
      const done = await mxctl(["--socket", `${folder}/frozen.sock`, "--timeout", "0.3", ...command], {
        timeoutMs: 20_000,
      });
      t.equal(done.code, exit, command.join(" "));
      t.match(done.stderr, /frozen.sock did not answer within 0.3 s/);
      t.match(done.stderr, /; way out: /);
    }
  },
);

t.test("a slow agent is not a dead one: the load is followed to its end", async (t) => {
  const done = await mxctl([
    "--socket",
    `${folder}/slow.sock`,
    "--timeout",
    "0.3",
    "load",
    "/x",
    "--model-name",
    "m",
    "--output",
    "json",
  ]);
  t.equal(done.code, 0, done.stderr);
  t.equal(JSON.parse(done.stdout).source_id, "f".repeat(16));
  t.ok(statusCalls > 0, "it was silent for longer than the timeout");
});

t.test("a control plane that does not answer: exit 1, with the address", async (t) => {
  const port = (frozenPort.address() as { port: number }).port;
  const done = await mxctl(["--endpoint", `127.0.0.1:${port}`, "--timeout", "0.5", "nodes"]);
  t.equal(done.code, 1);
  t.match(done.stderr, new RegExp(`control plane at 127.0.0.1:${port} did not answer within 0.5 s; way out: `));
});

t.test("several addresses: the first that answers, for streams too", async (t) => {
  const several = ["--endpoint", `127.0.0.1:1,${endpoint}`];
  t.equal((await mxctl([...several, "nodes"])).code, 0);
  const pulled = await mxctl([...several, "pull", "--model-name", "m", "--nodes", "all"]);
  t.equal(pulled.code, 0, pulled.stderr);
  t.match(pulled.stdout, /n1 +complete/);
});

t.test("MODEL_EXPRESS_MAX_RETRIES: tried again so often, and no more", async (t) => {
  for (const [failures, retries, exit] of [
    [2, "2", 0],
    [2, "1", 4],
    [1, "", 4],
  ] as const) {
    unavailable = failures;
    calls = 0;
    const done = await mxctl(["--endpoint", endpoint, "nodes"], { env: { MODEL_EXPRESS_MAX_RETRIES: retries } });
    t.equal(done.code, exit, done.stderr);
    t.equal(calls, Number(retries) + 1);
  }
  unavailable = 0;
});

t.test("transfers --watch asks again until Ctrl-C, which is clean", async (t) => {
  calls = 0;
  const watching = startProgram("mxctl", ["--endpoint", endpoint, "transfers", "--watch"]);
  await watching.waitFor(/no transfers[\s\S]*no transfers/);
  watching.kill("SIGINT");
  t.equal(await watching.exited, 130);
  t.ok(calls >= 2);
  t.match(watching.output(), /^(no transfers in the last ten minutes\n)+$/, "no stack, no escape codes");
});

t.test("transfers --watch --output json: one array a line, as pipes take it", async (t) => {
  const watching = startProgram("mxctl", ["--endpoint", endpoint, "transfers", "--watch", "-o", "json"]);
  await watching.waitFor(/^(\[\]\n){2}/);
  watching.kill("SIGINT");
  t.equal(await watching.exited, 130);
  t.match(watching.output(), /^(\[\]\n)+$/);
});

t.test("Ctrl-C in a load", async (t) => {
  const loading = startProgram("mxctl", ["--socket", `${folder}/frozen.sock`, "load", "/x", "--model-name", "m"]);
  const taken = new Promise<void>((resolve) => frozen.once("connection", () => resolve()));
  await taken;
  loading.kill("SIGINT");
  t.equal(await loading.exited, 130);
  t.match(loading.output(), /^mxctl: the load ends with this command, unless somebody else waits for the same.*\n$/);
  const again = new Promise<void>((resolve) => frozen.once("connection", () => resolve()));
  const pulling = startProgram("mxctl", ["--socket", `${folder}/frozen.sock`, "pull", "--model-name", "m"]);
  await again;
  pulling.kill("SIGINT");
  t.equal(await pulling.exited, 130);
  t.match(pulling.output(), /^mxctl: the transfer goes on without this command.*\n$/);
});

t.test("errors that nobody reads change no exit code", async (t) => {
  const command = `${process.execPath} ${ROOT}packages/mxctl/src/main.ts --endpoint 127.0.0.1:1 nodes`;
  const done = await runCommand(["bash", "-c", `${command} 2> >(exec true); echo "code $?"`]);
  t.match(done.stdout, /code 4/);
});

t.test("on a terminal: a bar that is taken away again, colour unless NO_COLOR", async (t) => {
  const node = `${process.execPath} ${ROOT}packages/mxctl/src/main.ts`;
  const onTerminal = async (command: string, env: Record<string, string> = {}) =>
    (
      await runCommand(
        ["python3", "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)", "sh", "-c", command],
        { env },
      )
    ).stdout;
  const load = await onTerminal(`${node} --socket ${folder}/slow.sock load /x --model-name m`);
  t.match(load, /\[#{15}\.{15}\] {2}50% loading 1 B of 2 B/);
  t.match(load, "\r\u001b[2Kmodel");
  const coloured = `${node} --socket ${folder}/slow.sock health --only node-agent`;
  t.match(await onTerminal(coloured, { NO_COLOR: "" }), "\u001b[1mPROGRAM");
  t.notMatch(await onTerminal(coloured, { NO_COLOR: "1" }), "\u001b[1m");
});
