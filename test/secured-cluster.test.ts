// A cluster whose security is on: agents, control plane and mxctl with real certificates; strangers at every door.
import { createPublicKey, sign as cryptoSign, generateKeyPairSync } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import type { CallOptions } from "@connectrpc/connect";
import type { Holding } from "@weightline/proto/common";
import { Health } from "@weightline/proto/grpc-health";
import { ServerReflection } from "@weightline/proto/grpc-reflection-v1";
import { ServerReflection as ServerReflectionV1Alpha } from "@weightline/proto/grpc-reflection-v1alpha";
import { AnnounceVerdict, NodeService } from "@weightline/proto/node";
import { WorkerService } from "@weightline/proto/p2p";
import { PeerService } from "@weightline/proto/peer";
import { type ChannelTls, createGrpcChannel, fromRpcError, parseAddress } from "@weightline/runtime";
import t from "tap";
import { createAuthority, readSigned, type Signed } from "./support/certificates.ts";
import { createCluster } from "./support/cluster.ts";
import { emptyCallStatus } from "./support/empty-call.ts";
import { until } from "./support/processes.ts";
import { startProgram } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";
import { accessCell, accessTable } from "./support/security-table.ts";

/** However busy the machine is. */
const START_CEILING_MS = 90_000;

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const authority = createAuthority(`${cluster.folder}/ca`);
const stranger = createAuthority(`${cluster.folder}/stranger`, "somebody else");
const uri = (rest: string) => `URI:spiffe://cluster.local/weightline/${rest}`;
const flagsOf = ({ chain, key }: Signed) => [
  ...["--security-mode", "enforce"],
  ...["--security-tls-certificate-file", chain],
  ...["--security-tls-key-file", key],
  ...["--security-tls-ca-file", authority.certificate],
];
const signNode = (name: string) => authority.sign(name, { names: [uri(`node/${name}`)] });

const issuer = generateKeyPairSync("rsa", { modulusLength: 2048 });
const ISSUER = "https://issuer.example";
writeFileSync(
  `${cluster.folder}/keys.json`,
  JSON.stringify({
    keys: [{ ...createPublicKey(issuer.privateKey).export({ format: "jwk" }), kid: "k", alg: "RS256" }],
  }),
);
function token(account: string): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + 600;
  const claims = { iss: ISSUER, aud: "weightline", sub: `system:serviceaccount:ns:${account}`, exp };
  const text = `${part({ alg: "RS256", kid: "k" })}.${part(claims)}`;
  return `${text}.${cryptoSign("sha256", Buffer.from(text), issuer.privateKey).toString("base64url")}`;
}
const tokens = Object.fromEntries(["pod", "operator", "other"].map((account) => [account, token(account)]));
const tokenFile = (account: string) => {
  const path = `${cluster.folder}/token-${account}`;
  writeFileSync(path, tokens[account] ?? "");
  return path;
};

const controlPlane = await cluster.startControlPlane([
  ...flagsOf(authority.sign("control-plane", { names: [uri("control-plane")] })),
  ...["--security-token-audiences", "weightline", "--security-token-issuer", ISSUER],
  ...["--security-allowed-service-accounts", "ns:pod", "--security-operator-service-accounts", "ns:operator"],
  ...["--security-jwks-file", `${cluster.folder}/keys.json`],
]);
const a = await cluster.startAgent("a", flagsOf(signNode("a")));
const b = await cluster.startAgent("b", [...flagsOf(signNode("b")), "--log-level", "debug"]);
const operator = authority.sign("operator", { names: [uri("operator/jo")] });
const asOperator = ["--ca", authority.certificate, "--cert", operator.chain, "--key", operator.key];

let models = 0;
async function load(): Promise<string> {
  const name = `m${models++}`;
  const path = `${cluster.folder}/${name}.safetensors`;
  writeTensors(path, { w: { dtype: "U8", shape: [100_000 + models] } });
  await cluster.load(a, path, name);
  return name;
}
const acquire = (name: string) =>
  b.python(`with agent.acquire(model_name="${name}", timeout=60) as held: print(held.outcome, held["w"].nbytes)`);

t.test("two agents: found, opened, received", async (t) => {
  const name = await load();
  t.equal(await acquire(name), "received 100001");
  t.notMatch(controlPlane.output() + a.program.output(), /security is off/);
});

t.test("mxctl: by certificate, by token, and what either may", async (t) => {
  const byToken = (account: string) => ["--ca", authority.certificate, "--token-file", tokenFile(account)];
  const run = (...parameters: string[]) => cluster.mxctl([...parameters, "-o", "json"]);
  const pull = ["pull", "--model-name", "m0", "--nodes", "all"];
  const seen = await Promise.all([asOperator, byToken("pod")].map((credentials) => run(...credentials, "nodes")));
  for (const { stdout, stderr } of seen) {
    t.same(
      JSON.parse(stdout).map(({ name }: { name: string }) => name),
      ["a", "b"],
      stderr,
    );
  }
  const pulls = await Promise.all([asOperator, byToken("operator")].map((credentials) => run(...credentials, ...pull)));
  for (const { stdout, stderr } of pulls) {
    t.same(
      JSON.parse(stdout).map(({ state }: { state: string }) => state),
      ["complete", "complete"],
      stderr,
    );
  }
  const transfers = await run(...asOperator, "transfers");
  t.match(JSON.parse(transfers.stdout), [{ node: "b", parent: "a" }], "the control plane may ask agents");
  t.equal(transfers.stderr, "", "all of them answered");
  const refused: Array<[string[], number, RegExp]> = [
    [[...byToken("pod"), ...pull], 5, /service account ns:pod may not call weightline.node.v1.NodeService\/FillNodes/],
    [[...byToken("other"), "nodes"], 5, /service account ns:other is not allowed here/],
    [["--ca", authority.certificate, "nodes"], 5, /needs a client certificate or a token/],
    [["nodes"], 5, /needs TLS and a client certificate, or a token/],
    [
      ["health", "--only", "control-plane"],
      5,
      /is refusing; way out: .*needs TLS and a client certificate, or a token/,
    ],
    [["--ca", stranger.certificate, "nodes"], 4, /does not answer: .*certificate/],
    [["--ca", authority.certificate, "--trust-domain", "far.local", "nodes"], 4, /not that of spiffe:\/\/far.local/],
  ];
  await Promise.all(
    refused.map(async ([parameters, code, words]) => {
      const done = await cluster.mxctl(parameters);
      t.equal(done.code, code, `${parameters.join(" ")}: ${done.stderr}`);
      t.match(done.stderr, words);
    }),
  );
});

const tlsOf = (signed?: Signed): ChannelTls => ({
  context: createSecureContext({
    ca: readFileSync(authority.certificate),
    ...(signed === undefined ? {} : readSigned(signed)),
  }),
  checkPeer: () => undefined,
});
function open(address: string, tls?: ChannelTls) {
  const channel = createGrpcChannel({ addresses: [parseAddress(address, "address")], tls });
  t.teardown(() => channel.close());
  return channel;
}

t.test("an agent's port: each method by each kind of caller", async (t) => {
  const table = accessTable("At an agent, where");
  const kinds: Array<[string, string, ChannelTls | undefined, string]> = [
    ["no TLS", "nobody", undefined, "Unauthenticated"],
    ["TLS alone", "nobody", tlsOf(), "Unauthenticated"],
    ["a stranger's", "nobody", tlsOf(stranger.sign("n", { names: [uri("node/n")] })), "Unauthenticated"],
    ["an operator's", "an operator's certificate", tlsOf(operator), "PermissionDenied"],
    ["an agent's", "an agent's certificate", tlsOf(signNode("n")), "PermissionDenied"],
    [
      "a control plane's",
      "a control plane's certificate",
      tlsOf(authority.sign("p", { names: [uri("control-plane")] })),
      "PermissionDenied",
    ],
  ];
  type Call = (request: object, options: CallOptions) => Promise<unknown> | AsyncIterable<unknown>;
  const codeOf = async (service: DescService, method: DescMethod, tls: ChannelTls | undefined): Promise<string> => {
    const client = open(a.address, tls).client(service) as unknown as Record<string, Call>;
    const stop = new AbortController();
    try {
      const result = (client[method.localName] as Call)({ child: "n" }, { timeoutMs: 20_000, signal: stop.signal });
      if (result instanceof Promise) {
        await result;
      } else {
        for await (const _ of result) {
          break;
        }
      }
      return "Ok";
    } catch (error) {
      return fromRpcError(error).code;
    } finally {
      stop.abort();
    }
  };
  const methods = [Health, PeerService, WorkerService]
    .flatMap((service: DescService) => service.methods)
    // It would drain the agent, of course.
    .filter((method) => method !== PeerService.method.drain);
  for (const method of methods) {
    const service = method.parent;
    for (const [who, column, tls, code] of kinds) {
      const allowed = accessCell(table, service.typeName, method.name, column) !== "no";
      const found = await codeOf(service, method, tls);
      const refused = found === "Unauthenticated" || found === "PermissionDenied";
      t.equal(refused ? found : "let in", allowed ? "let in" : code, `${service.typeName}/${method.name}: ${who}`);
    }
  }
  const reflect = ServerReflection.method.serverReflectionInfo.name;
  for (const { typeName } of [ServerReflection, ServerReflectionV1Alpha]) {
    for (const [who, column, tls, code] of kinds) {
      const address = parseAddress(a.address, "address");
      const status = await emptyCallStatus(address, `/${typeName}/${reflect}`, { context: tls?.context });
      const refused = code === "Unauthenticated" ? 16 : 7;
      t.equal(status, accessCell(table, typeName, reflect, column) !== "no" ? 0 : refused, `${typeName}: ${who}`);
    }
  }
  t.equal(accessCell(table, PeerService.typeName, "Drain", "an agent's certificate"), "no");
  for (const [who, , tls, code] of kinds.slice(0, -1)) {
    t.equal(await codeOf(PeerService, PeerService.method.drain, tls), code, `Drain: ${who}`);
  }
});

t.test("an agent speaks for itself alone to another one", async (t) => {
  const n = open(a.address, tlsOf(signNode("n"))).client(PeerService);
  for (const call of [
    n.open({ holdingId: "0", child: "b" }),
    n.reportDamage({ holdingId: "0", chunks: [0n], child: "b" }),
  ]) {
    t.match(await call.catch(fromRpcError), {
      code: "PermissionDenied",
      message: "spiffe://cluster.local/weightline/node/n does not speak for node b",
    });
  }
  t.match(
    await n.open({ holdingId: "0", child: "n" }).catch(fromRpcError),
    { code: "NotFound" },
    "its own name is taken",
  );
});

t.test("a node that gives another one's address is not spoken to", async (t) => {
  const name = await load();
  const d = open(cluster.controlPlane(), tlsOf(signNode("d"))).client(NodeService);
  let holdings: Holding[] = [];
  await until("a's announce of the model", async () => {
    const { nodes } = await d.listNodes({});
    holdings = nodes.find((node) => node.name === "a")?.holdings ?? [];
    return holdings.some(({ identities }) => identities.some(({ identity }) => identity?.modelName === name));
  });
  const { verdict } = await d.announce({
    node: "d",
    epoch: 1n,
    sequence: 1n,
    bootId: "d",
    address: a.address,
    ttlMs: 60_000,
    holdingsRevision: 1n,
    // The same models, in holdings of its own.
    holdings: {
      holdings: holdings.map((one, i) => ({ ...one, holdingId: String(i).padStart(32, "d") })),
    },
  });
  t.equal(verdict, AnnounceVerdict.ACCEPTED);
  t.match(await acquire(name), /^received/, "it came from a");
  const told = await b.program.waitFor(
    /"node":"d","error":"[^"]*certificate is that of spiffe:\/\/cluster.local\/weightline\/node\/a, not of spiffe:\/\/cluster.local\/weightline\/node\/d/,
  );
  t.ok(told, "and d was not believed");
  await d.leave({ node: "d", epoch: 1n, bootId: "d" });
});

t.test("an agent with a stranger's certificate: refused by the control plane, and it believes no other", async (t) => {
  const start = (name: string, flags: string[]) => {
    const program = startProgram("node-agent", [
      ...["--node-name", name, "--store", cluster.store(name), "--socket", `${cluster.folder}/${name}.sock`],
      ...["--bind", "127.0.0.1", "--port", "0", "--data-port", "0", "--metrics-port", "0", "--memory-limit", "1GiB"],
      ...["--control-plane", cluster.controlPlane(), "--log-format", "json", ...flags],
    ]);
    t.teardown(() => program.stop());
    return program;
  };
  const wrong = stranger.sign("c", { names: [uri("node/c")] });
  const c = start("c", flagsOf(wrong));
  const trusting = start("e", [...flagsOf(signNode("e")).slice(0, -1), stranger.certificate]);
  const other = start("f", flagsOf(signNode("a3")));
  const none = start("g", ["--security-mode", "enforce"]);
  // Four programs start at once.
  await c.waitFor(
    /"event":"control-plane-away","error":"the client's certificate is not accepted: no authority/,
    START_CEILING_MS,
  );
  await controlPlane.waitFor(/"event":"certificate-refused"/);
  const [line] = await c.waitFor(/^.*"msg":"ready".*$/m);
  const address = JSON.parse(line).address as string;
  const byB = createGrpcChannel({
    addresses: [parseAddress(address, "address")],
    tls: tlsOf(signNode("b2")),
  });
  t.teardown(() => byB.close());
  t.match(await byB.client(PeerService).find({}).catch(fromRpcError), {
    code: "Unavailable",
    message: /certificate/,
  });
  await trusting.waitFor(/"event":"control-plane-away","error":"[^"]*(self-signed|unable to)/, START_CEILING_MS);
  t.equal(await other.exited, 1);
  t.match(other.output(), /is that of spiffe:\/\/cluster.local\/weightline\/node\/a3, not of .*node\/f/);
  t.equal(await none.exited, 1);
  t.match(none.output(), /enforce needs security.tls_certificate_file/);
});

t.test("certificates that are renewed while the agents run", async (t) => {
  const name = await load();
  signNode("a");
  signNode("b");
  await a.program.waitFor(/"event":"certificates-renewed"/);
  await b.program.waitFor(/"event":"certificates-renewed"/);
  t.match(await acquire(name), /^received/);
});

t.test("doctor", async (t) => {
  const done = await cluster.mxctl([...asOperator, "doctor", "-o", "json"], b);
  const checks: Array<{ name: string; level: string; evidence: string }> = JSON.parse(done.stdout);
  const check = (name: string) => checks.find((one) => one.name === name);
  t.match(check("security"), { level: "ok", evidence: /security is on; this node's certificate is valid until/ });
  t.match(check("peers"), { level: "ok" });
  t.match(check("control-plane"), { level: "ok" });
  t.match(check("endpoint"), { level: "ok" });
});

t.test("no token and no key in logs and metrics", async (t) => {
  const texts = {
    "control plane": controlPlane.output(),
    a: a.program.output(),
    b: b.program.output(),
    metrics: (await a.metrics()) + (await b.metrics()),
  };
  t.match(texts["control plane"], /"event":"call-failed".*ns:other is not allowed/);
  for (const [where, text] of Object.entries(texts)) {
    t.notMatch(text, /PRIVATE KEY|BEGIN CERT|ey[A-Za-z0-9_-]{20,}/, where);
    for (const secret of Object.values(tokens)) {
      t.notOk(text.includes(secret.split(".")[2] ?? ""), `${where}: no signature`);
    }
  }
});
