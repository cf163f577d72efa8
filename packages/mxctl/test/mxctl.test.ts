// The command line against servers of its own: formats, exit codes, errors.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { create } from "@bufbuild/protobuf";
import { filesIdentity } from "@weightline/proto";
import { HoldingSchema, HoldingState, NodeState, Tier, TransferState } from "@weightline/proto/common";
import { AgentService } from "@weightline/proto/local";
import { NodeService } from "@weightline/proto/node";
import { createGrpcServer, type ErrorCode, mountLocalRpc, route, WeightlineError } from "@weightline/runtime";
import fastify from "fastify";
import t from "tap";
import { parse } from "yaml";
import { createAuthority } from "../../../test/support/certificates.ts";
import { type Finished, mxctl, ROOT, runCommand } from "../../../test/support/program.ts";
import { runMxctl } from "../src/program.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-mxctl-`);
const socket = `${folder}/agent.sock`;
let failure: WeightlineError | undefined;
let hostile = false;
const fail = () => {
  if (failure !== undefined) {
    throw failure;
  }
};
const holding = create(HoldingSchema, {
  holdingId: "a".repeat(32),
  state: HoldingState.FILLING,
  tier: Tier.DRAM,
  totalBytes: 2n ** 52n,
  verifiedBytes: 2n ** 51n,
  items: 3n,
  leases: 2,
  identities: [{ identity: filesIdentity("m", "r".repeat(40)), rank: 1, sourceId: "f".repeat(16) }],
});
const requests: object[] = [];
const server = await createGrpcServer({
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
  routes: [
    route(NodeService, {
      listNodes() {
        fail();
        return {
          nodes: [
            {
              name: "n1",
              state: NodeState.READY,
              epoch: 5n,
              address: "h:1",
              lastSeenMs: 9n,
              memory: { limit: 10n, used: 5n },
              holdings: [holding],
              version: "0.1.0",
              protection: "read-only mount",
            },
            { name: "n2", state: NodeState.LOST },
            ...(hostile ? [{ name: "\u001b]0;own\u0007\u009b31m\u202e", state: NodeState.READY }] : []),
          ],
          nowMs: 5009n,
        };
      },
      listSources: () => ({ sources: [] }),
      listTransfers: ({ last }) => ({
        transfers: [
          ...Array.from({ length: last }, (_, i) => ({
            modelName: `ended${i}`,
            state: i === 0 ? TransferState.FAILED : TransferState.DONE,
            endedMs: 1000n * BigInt(i + 1),
            error: i === 0 ? "it broke" : "",
            phases: { findingS: 0.1234567, openingS: 1, layoutS: 2, firstByteS: 3, receivingS: 4, finishingS: 5 },
            waits: { parentS: 0.5, wireS: 1.5, verifyS: 2.5, storeS: 3.5 },
          })),
          {
            modelName: "m",
            node: "n1",
            parent: "n0",
            transport: "stream",
            state: TransferState.RUNNING,
            verifiedBytes: 1n,
            totalBytes: 2n,
            bytesPerS: 1.4,
            percentOfBound: 97.26,
            blame: "wire",
          },
        ],
        silentNodes: ["n2"],
      }),
      async *fillNodes(request) {
        requests.push(request);
        fail();
        yield { node: { node: "n1", progress: { state: "receiving", verifiedBytes: 1n, totalBytes: 2n } } };
        yield { node: { node: "n1", done: true } };
        yield { node: { node: "n2", errorCode: "Unavailable", error: "the node is lost" } };
      },
    }),
  ],
});
const http = fastify();
mountLocalRpc(http, {
  maxMessageBytes: 1 << 20,
  shutdownSignal: new AbortController().signal,
  routes: [
    route(AgentService, {
      async *load(request) {
        requests.push(request);
        fail();
        yield { event: { case: "progress", value: { state: "loading", verifiedBytes: 1n, totalBytes: 2n } } };
        yield {
          event: {
            case: "loaded",
            value: { sourceId: "f".repeat(16), holding, ignoredFiles: ["x.bin"], warnings: ["odd"] },
          },
        };
      },
      async *pull() {
        fail();
        yield { event: { case: "pulled", value: { holding, outcome: "received" } } };
      },
      evict() {
        fail();
        return { holdingIds: ["a"], freedBytes: 0n, pendingBytes: 5n };
      },
      status: () => ({ node: "n1", version: "1", state: NodeState.READY, controlPlane: "connected" }),
    }),
  ],
});
await http.listen({ path: socket });
t.teardown(async () => {
  await server.stop(0);
  await http.close();
  rmSync(folder, { recursive: true });
});
const endpoint = `127.0.0.1:${server.port}`;
/** A command line that fails before it calls anybody, in this process: a start costs half a second. */
async function complains(
  parameters: readonly string[],
  env: Record<string, string> = {},
): Promise<{ code: number; stderr: string }> {
  const { write } = process.stderr;
  let stderr = "";
  process.stderr.write = (text: string | Uint8Array) => {
    stderr += String(text);
    return true;
  };
  try {
    const code = await runMxctl(parameters, env);
    return { code, stderr };
  } finally {
    process.stderr.write = write;
  }
}

const run = (...parameters: string[]): Promise<Finished> =>
  mxctl(["--endpoint", endpoint, "--socket", socket, ...parameters]);

t.test("nodes: table, wide, json, yaml", async (t) => {
  const json = JSON.parse((await run("--output", "json", "nodes")).stdout);
  t.same(json[0], {
    name: "n1",
    state: "ready",
    epoch: 5,
    address: "h:1",
    last_seen_ms: 9,
    memory: { limit: 10, used: 5 },
    holdings: [
      {
        source_id: "f".repeat(16),
        object_digest: "",
        model_name: "m",
        revision: "r".repeat(40),
        rank: 1,
        state: "filling",
        verified_bytes: 2 ** 51,
        total_bytes: 2 ** 52,
        tier: "dram",
        leases: 2,
        holding_id: "a".repeat(32),
      },
    ],
    version: "0.1.0",
    protection: "read-only mount",
  });
  t.match(json[1], { name: "n2", state: "lost", holdings: [] });
  t.same(parse((await run("--output", "yaml", "nodes")).stdout), json);
  const table = (await run("nodes")).stdout;
  t.match(table, /^NODE +STATE +MEMORY/);
  t.match(table, /n1 +ready +5 B \/ 10 B +m@rrrrrrrrrrrr +1 +filling 50%/);
  t.notMatch(table, "\u001b", "no colour into a pipe");
  t.notMatch(table, /ADDRESS/);
  const wide = (await run("nodes", "-o", "wide")).stdout.split("\n");
  t.match(
    wide[0],
    /^NODE +STATE +SEEN +ADDRESS +EPOCH +VERSION +PROTECTION +MEMORY +MODEL +RANK +HOLDING +VERIFIED +SIZE +TIER +LEASES +DIGEST +SOURCE$/,
  );
  t.match(
    wide[1],
    /^n1 +ready +5 s ago +h:1 +5 +0\.1\.0 +read-only mount +5 B \/ 10 B +m@r{12} +1 +filling 50% +50% +4096\.0 TiB +dram +2 +f{16}$/,
  );
  t.match(wide[2], /^n2 +lost +- +0 +- +- +0 B \/ 0 B +-$/);
});

t.test("a name cannot command the terminal", async (t) => {
  hostile = true;
  const table = (await run("nodes")).stdout;
  const json = (await run("nodes", "--output", "json")).stdout;
  hostile = false;
  t.match(table, "\\u001b]0;own\\u0007\\u009b31m\\u202e");
  t.notMatch(table, /[^\P{Cc}\n]|\u202e/u);
  t.equal(JSON.parse(json)[2].name, "\u001b]0;own\u0007\u009b31m\u202e", "JSON keeps it as it is");
});

t.test("transfers, sources", async (t) => {
  const done = await run("transfers", "--output", "json");
  t.match(JSON.parse(done.stdout), [
    {
      model_name: "m",
      node: "n1",
      parent: "n0",
      state: "running",
      bytes_per_s: 1,
      percent_of_bound: 97.3,
      blame: "wire",
    },
  ]);
  t.match(done.stderr, /did not answer: n2/);
  const last = JSON.parse((await run("transfers", "--last", "3", "-o", "json")).stdout);
  t.same(
    last.map(({ model_name }: { model_name: string }) => model_name),
    ["ended2", "ended1", "ended0"],
    "ended ones alone, the newest first",
  );
  t.match(last[2], {
    state: "failed",
    error: "it broke",
    phases: { finding_s: 0.123, opening_s: 1, layout_s: 2, first_byte_s: 3, receiving_s: 4, finishing_s: 5 },
    waits: { parent_s: 0.5, wire_s: 1.5, verify_s: 2.5, store_s: 3.5 },
  });
  const table = (await run("transfers", "--last")).stdout;
  t.equal(table.split("\n").length, 12, "ten by default");
  t.match(table, /1970-01-01T00:00:10 +ended9 .* 0\.12 +1\.00 +2\.00 +3\.00 +4\.00 +5\.00 +0\.50\/1\.50\/2\.50\/3\.50/);
  t.match((await run("sources")).stdout, /^no sources\n$/);
  t.same(JSON.parse((await run("sources", "--output", "json")).stdout), []);
});

t.test("load: the caller's directory, all flags, what was ignored", async (t) => {
  const done = await mxctl(
    [
      "--socket",
      socket,
      "load",
      "./x",
      "--model-name",
      "m",
      "--rank",
      "2",
      "--revision",
      "r",
      "--replace",
      "--output",
      "json",
    ],
    { cwd: folder },
  );
  t.equal(done.code, 0, done.stderr);
  t.match(JSON.parse(done.stdout), {
    source_id: "f".repeat(16),
    object_digest: "",
    total_bytes: 2 ** 52,
    items: 3,
    ignored_files: ["x.bin"],
  });
  t.match(requests.at(-1), { path: `${folder}/x`, modelName: "m", rank: 2, revision: "r", replace: true });
  t.match((await run("load", "/x", "--model-name", "m")).stdout, /ignored files +x.bin\nwarning +odd/);
});

t.test("pull --nodes: each node's end, and the failing one's exit code", async (t) => {
  const done = await run("pull", "--model-name", "m", "--nodes", "n1,n2");
  t.equal(done.code, 4);
  t.match(done.stdout, /n1 +complete[\s\S]*n2 +failed/);
  t.match(done.stderr, /node n2: the node is lost/);
  t.match(requests.at(-1), { nodes: ["n1", "n2"], identity: { modelName: "m" } });
});

t.test("exit codes: one for each kind of failure, one line with a way out", async (t) => {
  const kinds: Array<[ErrorCode, number]> = [
    ["NotFound", 3],
    ["Unavailable", 4],
    ["DeadlineExceeded", 1],
    ["Refused", 1],
    ["InvalidArgument", 2],
    ["PermissionDenied", 5],
    ["Unauthenticated", 5],
    ["ResourceExhausted", 1],
    ["Corrupt", 1],
    ["InUse", 6],
    ["AlreadyExists", 6],
  ];
  for (const [code, exit] of kinds) {
    failure = new WeightlineError(code, `a failure of kind ${code}`, { wayOut: "do something" });
    for (const command of [
      ["evict", "--model-name", "m"],
      ["load", "/x", "--model-name", "m"],
      ["pull", "--model-name", "m"],
    ]) {
      const done = await complains(["--endpoint", endpoint, "--socket", socket, ...command]);
      t.equal(done.code, exit, `${code}: ${command[0]}`);
      t.equal(done.stderr, `mxctl: a failure of kind ${code}; way out: do something\n`);
    }
  }
  const spawned = await run("evict", "--model-name", "m");
  t.equal(spawned.code, 6, "the process ends with that code");
  t.equal(spawned.stdout, "");
  failure = new WeightlineError("Refused", "no");
  t.match((await run("-v", "evict", "--model-name", "m")).stderr, /^ {2}request: [0-9a-f]{8} in the log/m);
  failure = undefined;
});

t.test("credentials that cannot be used: exit 2, before anybody is dialled", async (t) => {
  const ca = createAuthority(`${folder}/ca`);
  const one = ca.sign("one");
  const other = ca.sign("other");
  const broken = `${folder}/broken.pem`;
  writeFileSync(broken, "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n");
  const wrong: Array<[string[], Record<string, string>, RegExp]> = [
    [["--token-file", "/t"], {}, /--token-file is given without --ca; way out: .*over TLS alone/],
    [["--cert", one.chain, "--key", one.key], {}, /--cert is given without --ca/],
    [["--ca", ca.certificate, "--cert", one.chain], {}, /--cert is given without --key/],
    [["--ca", ca.certificate], { MODEL_EXPRESS_SECURITY_TLS_KEY_FILE: one.key }, /KEY_FILE is given without --cert/],
    [["--ca", "/nowhere"], {}, /--ca \/nowhere cannot be used: there is no such file/],
    [["--ca", broken], {}, /--ca .*broken.pem cannot be used: it has no PEM certificate that can be read/],
    [["--ca", one.key], {}, /--ca .*one.key cannot be used: it has no PEM certificate/],
    [
      [],
      { MODEL_EXPRESS_SECURITY_TLS_CA_FILE: "/nowhere" },
      /MODEL_EXPRESS_SECURITY_TLS_CA_FILE \/nowhere cannot be used/,
    ],
    [["--ca", ca.certificate, "--token-file", folder], {}, /--token-file .* cannot be used: it is a folder/],
    [["--ca", ca.certificate, "--cert", one.chain, "--key", other.key], {}, /are no PEM certificate and its key/],
  ];
  for (const [parameters, env, words] of wrong) {
    const { code, stderr } = await complains(["--endpoint", endpoint, ...parameters, "nodes"], env);
    t.equal(code, 2, stderr);
    t.match(stderr, words);
    t.notMatch(stderr, /bm9uc2|PRIVATE/, "nothing of the file");
  }
  const stock = await mxctl(["--endpoint", endpoint, "nodes"], { env: { MX_AUTH_TOKEN_PATH: "/nowhere" } });
  t.equal(stock.code, 0, "a stock client's variable is for TLS or for nobody");
});

t.test("usage: exit 2, and what was meant", async (t) => {
  const wrong: Array<[string[], RegExp]> = [
    [["fly"], /unknown command 'fly'/],
    [["nodes", "--fly"], /unknown option '--fly'/],
    [["load", "--model-name", "m"], /missing required argument 'path'/],
    [["load", "x"], /--model-name/],
    [["evict"], /--model-name or --source-id/],
    [["evict", "--model-name", "m", "--source-id", "x"], /one of them/],
    [["--output", "xml", "nodes"], /--output "xml" is not known/],
    [["--timeout", "soon", "nodes"], /--timeout "soon" is not a number/],
    [["--timeout", "0", "nodes"], /--timeout "0" is not a number of seconds above 0/],
    [["--endpoint", ",", "nodes"], /--endpoint "," names no address/],
    [["--endpoint", "a:1,,b:2", "nodes"], /--endpoint "a:1,,b:2" has an empty part/],
    [["--endpoint", "--output", "json", "nodes"], /--endpoint needs a value; way out: .*--endpoint=--output/],
    [["pull", "--model-name", "--nodes", "all"], /--model-name needs a value; way out: .*--model-name=--nodes/],
    [["load", "x", "--model-name", "m", "--rank", "--replace"], /--rank needs a value/],
    [["load", "", "--model-name", "m"], /PATH is empty/],
    [["load", "/x", "--model-name", ""], /--model-name is empty/],
    [["pull", "--model-name", ""], /--model-name is empty/],
    [["evict", "--source-id", ""], /--source-id is empty/],
    [["pull", "--model-name", "m", "--rank", ""], /--rank "" is not a whole number/],
    [["pull", "--model-name", "m", "--rank", "0x10"], /--rank "0x10" is not a whole number/],
    [["pull", "--model-name", "m", "--rank", "4294967296"], /0 to 4294967295/],
    [["--socket", `/${"s".repeat(107)}`, "drain"], /--socket .* has 108 bytes; way out: .* at most 107/],
    [["--endpoint", "nowhere", "nodes"], /--endpoint "nowhere" is not host:port/],
    [["pull", "--model-name", "m", "--rank", "-1"], /--rank "-1" is not a whole number/],
    [["pull", "--model-name", "m", "--nodes", ","], /--nodes names no node/],
    [["pull", "--model-name", "m", "--nodes", "a,,b"], /--nodes "a,,b" has an empty name/],
    [["transfers", "--last", "many"], /--last "many" is not a whole number from 0 to 500/],
    [["transfers", "--last", "--watch"], /--last shows what has ended/],
    [["health", "--only", "x"], /--only "x" is not known/],
    [["--config", `${folder}/none.yaml`, "nodes"], /cannot be read/],
  ];
  for (const [parameters, pattern] of wrong) {
    const { code, stderr } = await complains(parameters);
    t.equal(code, 2, parameters.join(" "));
    t.match(stderr, pattern);
    t.match(stderr, /^mxctl: .*; way out: .*\n$/, "one line");
  }
  t.equal((await mxctl(["fly"])).code, 2, "the process ends with that code");
  t.equal((await mxctl([])).code, 2);
  const help = await mxctl(["--help"]);
  t.equal(help.code, 0);
  t.match(help.stdout, /Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unreachable, 5 not permitted, 6 in use/);
  const commands = ["nodes", "sources", "transfers", "load", "pull", "evict", "drain", "health", "doctor"];
  // All in one process: what a start costs is no matter of help.
  const program = `import { runMxctl } from "${ROOT}packages/mxctl/src/program.ts";
    for (const command of ${JSON.stringify(commands)}) {
      process.stdout.write("\\f");
      process.exitCode ||= await runMxctl([command, "--help"], {});
    }`;
  const all = await runCommand([process.execPath, "--input-type=module-typescript", "-e", program]);
  t.equal(all.code, 0, all.stderr);
  const pages = all.stdout.split("\f").slice(1);
  t.equal(pages.length, commands.length);
  for (const [i, command] of commands.entries()) {
    t.match(help.stdout, command);
    t.match(pages[i], new RegExp(`Global Options:[\\s\\S]*--socket[\\s\\S]*Examples:\\n  mxctl .*${command}`), command);
  }
});

t.test("who cannot be reached is named: exit 4; -v tells why", async (t) => {
  const away = await mxctl(["--endpoint", "127.0.0.1:1", "nodes"]);
  t.equal(away.code, 4);
  t.match(away.stderr, /control plane at 127.0.0.1:1 does not answer.*--endpoint/);
  const dead = await mxctl(["--socket", `${folder}`, "drain"]);
  t.equal(dead.code, 4);
  t.match(dead.stderr, /the socket is dead.*mount the socket's directory, not the socket file/);
  const none = await mxctl(["--socket", `${folder}/none`, "evict", "--model-name", "m"]);
  t.equal(none.code, 4);
  t.match(none.stderr, /no agent at .*none: there is no socket.*--socket or MX_AGENT_SOCKET/);
  t.match((await mxctl(["-v", "--endpoint", "127.0.0.1:1", "nodes"])).stderr, /because: /);
});

t.test("precedence: flag, environment, file", async (t) => {
  writeFileSync(`${folder}/mxctl.yaml`, `endpoint: ${endpoint}\noutput: json\n`);
  t.equal(JSON.parse((await mxctl(["--config", `${folder}/mxctl.yaml`, "nodes"])).stdout).length, 2);
  t.equal(
    (await mxctl(["--config", `${folder}/mxctl.yaml`, "nodes"], { env: { MODEL_EXPRESS_ENDPOINT: "127.0.0.1:1" } }))
      .code,
    4,
  );
  t.equal(
    (await mxctl(["--endpoint", endpoint, "nodes"], { env: { MODEL_EXPRESS_ENDPOINT: "http://127.0.0.1:1" } })).code,
    0,
  );
  writeFileSync(`${folder}/wrong.yaml`, "endpiont: x\n");
  t.match((await mxctl(["--config", `${folder}/wrong.yaml`, "nodes"])).stderr, /setting endpiont is not known/);
  const empty = { MODEL_EXPRESS_ENDPOINT: "", MODEL_EXPRESS_TIMEOUT: "", MODEL_EXPRESS_MAX_RETRIES: "" };
  t.equal((await mxctl(["--config", `${folder}/mxctl.yaml`, "nodes"], { env: empty })).code, 0, "empty is unset");
});

t.test("a wrong setting is named with where it came from: exit 2", async (t) => {
  const wrong: Array<[string, Record<string, string>, RegExp]> = [
    ["", { MODEL_EXPRESS_TIMEOUT: "soon" }, /MODEL_EXPRESS_TIMEOUT "soon"/],
    ["", { MODEL_EXPRESS_MAX_RETRIES: "1.5" }, /MODEL_EXPRESS_MAX_RETRIES "1.5" is not a whole number from 0 to 100/],
    ["", { MODEL_EXPRESS_URL: "nowhere" }, /MODEL_EXPRESS_URL "nowhere" is not host:port/],
    ["timeout: [1]", {}, /setting.yaml: setting timeout \[1\] is not a number of seconds/],
    ["timeout: soon", {}, /setting.yaml: timeout "soon" is not a number/],
    ["output: 5", {}, /setting.yaml: setting output 5 is not a string/],
    ["output: xml", {}, /setting.yaml: output "xml" is not known/],
    ["just words", {}, /is not a mapping of settings/],
    ["endpoint: {hunter2: x", {}, /cannot be read at line 1, column \d+: .*; way out: /],
    ["a: b: c", {}, /cannot be read at line 1, column/],
  ];
  for (const [text, env, pattern] of wrong) {
    writeFileSync(`${folder}/setting.yaml`, text);
    const { code, stderr } = await complains(["--config", `${folder}/setting.yaml`, "nodes"], env);
    t.equal(code, 2, text);
    t.match(stderr, pattern);
    t.notMatch(stderr, "hunter2", "the file's text may be a secret");
  }
  writeFileSync(`${folder}/null.yaml`, `endpoint: ${endpoint}\noutput: null\ntimeout: ~\nsocket:\n`);
  t.equal((await mxctl(["--config", `${folder}/null.yaml`, "nodes"])).code, 0, "null is not given");
});

t.test("output that pipes: a reader that leaves is no failure", async (t) => {
  const done = await runCommand([
    "bash",
    "-c",
    `set -o pipefail; for i in 1 2 3; do ${process.execPath} ${ROOT}packages/mxctl/src/main.ts --endpoint ${endpoint} nodes --output json | head -n 1; done`,
  ]);
  t.equal(done.code, 0, done.stderr);
  t.equal(done.stdout, "[\n[\n[\n");
});

t.test("health: both daemons", async (t) => {
  const agent = await run("health", "--only", "node-agent", "--output", "json");
  t.equal(agent.code, 0);
  t.match(JSON.parse(agent.stdout), [{ program: "node-agent", healthy: true, status: "ready" }]);
  const both = await run("health", "--output", "json");
  t.not(both.code, 0, "this control plane has no health service");
  t.match(JSON.parse(both.stdout), [{ program: "control-plane", healthy: false }, { healthy: true }]);
});
