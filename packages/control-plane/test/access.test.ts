// Who may call what at a control plane whose security is on: each method by each kind of caller, as docs/security.md says.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { createSecureContext } from "node:tls";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import type { CallOptions } from "@connectrpc/connect";
import { CONTROL_PLANE_OPTIONS, type ControlPlane, checkSecurity, createControlPlane } from "@weightline/control-plane";
import { ApiService } from "@weightline/proto/api";
import { Health } from "@weightline/proto/grpc-health";
import { ServerReflection } from "@weightline/proto/grpc-reflection-v1";
import { ServerReflection as ServerReflectionV1Alpha } from "@weightline/proto/grpc-reflection-v1alpha";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { AnnounceVerdict, NodeService } from "@weightline/proto/node";
import { P2pService } from "@weightline/proto/p2p";
import {
  type ChannelTls,
  createGrpcChannel,
  createLogger,
  fromRpcError,
  type GrpcChannel,
  readConfiguration,
} from "@weightline/runtime";
import { generateKeyPair } from "jose";
import t from "tap";
import { createAuthority, readSigned, type Signed } from "../../../test/support/certificates.ts";
import { freePort } from "../../../test/support/cluster.ts";
import { emptyCallStatus, type Proof } from "../../../test/support/empty-call.ts";
import { accessCell, accessTable } from "../../../test/support/security-table.ts";
import { honestReview, ISSUER, KEYS_PATH, signToken, startApi } from "./token-review-server.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-access-`);
t.teardown(() => rmSync(folder, { recursive: true }));
const authority = createAuthority(`${folder}/ca`);
const stranger = createAuthority(`${folder}/stranger`, "somebody else");
const api = await startApi(authority, t);
api.answer = honestReview;
const logFile = `${folder}/log`;
const log = createLogger({ program: "test", level: "trace", format: "json", file: logFile });
const uri = (rest: string) => `URI:spiffe://cluster.local/weightline/${rest}`;
const own = authority.sign("control-plane", { names: [uri("control-plane"), "DNS:localhost"] });

async function start(settings: Record<string, string>): Promise<ControlPlane> {
  const { values } = readConfiguration({
    table: CONTROL_PLANE_OPTIONS,
    argv: ["--host", "127.0.0.1", "--port", "0"],
    env: {
      MODEL_EXPRESS_SERVER_METRICS_PORT: settings["metrics"] ?? "0",
      ...Object.fromEntries(
        Object.entries(settings)
          .filter(([name]) => name !== "metrics")
          .map(([name, value]) => [`MODEL_EXPRESS_SECURITY_${name.toUpperCase()}`, value]),
      ),
    },
    check: checkSecurity,
  });
  const controlPlane = await createControlPlane(values, log);
  t.teardown(() => controlPlane.stop());
  return controlPlane;
}
writeFileSync(`${folder}/own-token`, "own");
const ENFORCE = {
  mode: "enforce",
  token_audiences: "weightline",
  allowed_service_accounts: "ns:one",
  operator_service_accounts: "ns:operator",
  kubernetes_api: api.url.href,
  kubernetes_ca_file: authority.certificate,
  kubernetes_token_file: `${folder}/own-token`,
};
const FILES = {
  tls_certificate_file: own.chain,
  tls_key_file: own.key,
  tls_ca_file: authority.certificate,
};
const secured = await start({ ...ENFORCE, ...FILES });

const tlsOf = (signed?: Signed): ChannelTls => ({
  context: createSecureContext({
    ca: readFileSync(authority.certificate),
    ...(signed === undefined ? {} : readSigned(signed)),
  }),
  checkPeer: () => undefined,
});
function open({ port }: ControlPlane, tls?: ChannelTls, token?: string): GrpcChannel {
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port }], tls, token });
  t.teardown(() => channel.close());
  return channel;
}

/** The code of one call; "Ok" for a reply. Streams are asked for their first message. */
async function codeOf(channel: GrpcChannel, service: DescService, method: DescMethod, request = {}): Promise<string> {
  async function* stream() {
    yield request;
  }
  type Call = (request: object, options: CallOptions) => Promise<unknown> | AsyncIterable<unknown>;
  const call = (channel.client(service) as unknown as Record<string, Call>)[method.localName] as Call;
  const stop = new AbortController();
  try {
    if (method.methodKind === "unary") {
      await call(request, { timeoutMs: 20_000 });
    } else {
      const sent = method.methodKind === "bidi_streaming" ? stream() : request;
      for await (const _ of call(sent, { signal: stop.signal }) as AsyncIterable<unknown>) {
        break;
      }
    }
    return "Ok";
  } catch (error) {
    const { code, message } = fromRpcError(error);
    return /cannot be checked/.test(message) ? "Unchecked" : code;
  } finally {
    stop.abort();
  }
}

const REFUSALS = new Set(["Unauthenticated", "PermissionDenied", "Unchecked"]);
const SERVICES: DescService[] = [Health, P2pService, ModelService, ApiService, HealthService, NodeService];
const { announce, announceStream, leave } = NodeService.method;
const NAMED = Object.fromEntries([announce, announceStream, leave].map(({ name }) => [name, { node: "n1" }]));

interface Kind {
  /** Of the table; "" for one that only probes are open to. */
  column: string;
  channel: GrpcChannel;
  code: string;
}
const NOBODY = "nobody";
const OPERATOR = "token of an operator's account, or an operator's certificate";
const certificate = (name: string, rest: string, by = authority) => tlsOf(by.sign(name, { names: [uri(rest)] }));
const kinds: Record<string, Kind> = {
  "no TLS": { column: NOBODY, channel: open(secured), code: "Unauthenticated" },
  "TLS alone": { column: NOBODY, channel: open(secured, tlsOf()), code: "Unauthenticated" },
  "a token without TLS": {
    column: NOBODY,
    channel: open(secured, undefined, await signToken()),
    code: "Unauthenticated",
  },
  "a bad token": { column: NOBODY, channel: open(secured, tlsOf(), "nonsense"), code: "Unauthenticated" },
  "another account's token": {
    column: NOBODY,
    channel: open(secured, tlsOf(), await signToken({ sub: "system:serviceaccount:ns:other" })),
    code: "PermissionDenied",
  },
  "an account whose name begins like an allowed one": {
    column: NOBODY,
    channel: open(secured, tlsOf(), await signToken({ sub: "system:serviceaccount:ns:one2" })),
    code: "PermissionDenied",
  },
  "an allowed account's token": {
    column: "token of an allowed account",
    channel: open(secured, tlsOf(), await signToken()),
    code: "PermissionDenied",
  },
  "an operator account's token": {
    column: OPERATOR,
    channel: open(secured, tlsOf(), await signToken({ sub: "system:serviceaccount:ns:operator" })),
    code: "PermissionDenied",
  },
  "an operator's certificate": {
    column: OPERATOR,
    channel: open(secured, certificate("operator", "operator/jo")),
    code: "PermissionDenied",
  },
  "an agent's certificate": {
    column: "an agent's certificate",
    channel: open(secured, certificate("n1", "node/n1")),
    code: "PermissionDenied",
  },
  "a control plane's certificate": {
    column: "a control plane's certificate",
    channel: open(secured, certificate("other", "control-plane")),
    code: "PermissionDenied",
  },
  "a stranger's certificate and a good token": {
    column: NOBODY,
    channel: open(secured, certificate("s1", "node/n1", stranger), await signToken()),
    code: "Unauthenticated",
  },
};

t.test("each method by each kind of caller", async (t) => {
  const table = accessTable("At the control plane:");
  let calls = 0;
  for (const service of SERVICES) {
    for (const method of service.methods) {
      for (const [who, { column, channel, code }] of Object.entries(kinds)) {
        const allowed = accessCell(table, service.typeName, method.name, column) !== "no";
        const found = await codeOf(channel, service, method, NAMED[method.name]);
        t.equal(
          REFUSALS.has(found) ? found : "let in",
          allowed ? "let in" : code,
          `${service.typeName}/${method.name}: ${who}`,
        );
        calls += 1;
      }
    }
  }
  t.ok(calls >= 12 * 18, `${calls} calls`);
});

t.test("reflection by each kind of caller", async (t) => {
  const table = accessTable("At the control plane:");
  const by = (signed: Signed): Proof => ({ context: tlsOf(signed).context });
  const callers: Array<[string, Proof, number]> = [
    [NOBODY, {}, 16],
    [NOBODY, { context: tlsOf().context }, 16],
    ["token of an allowed account", { context: tlsOf().context, token: await signToken() }, 7],
    [OPERATOR, by(authority.sign("reflecting", { names: [uri("operator/jo")] })), 7],
    ["an agent's certificate", by(authority.sign("r1", { names: [uri("node/r1")] })), 7],
    ["a control plane's certificate", by(authority.sign("r2", { names: [uri("control-plane")] })), 7],
  ];
  for (const { typeName } of [ServerReflection, ServerReflectionV1Alpha]) {
    for (const [column, proof, refused] of callers) {
      const name = ServerReflection.method.serverReflectionInfo.name;
      const status = await emptyCallStatus({ host: "127.0.0.1", port: secured.port }, `/${typeName}/${name}`, proof);
      const allowed = accessCell(table, typeName, name, column) !== "no";
      t.equal(status, allowed ? 0 : refused, `${typeName}: ${column}`);
    }
  }
});

t.test("an agent speaks for its own node alone, and for itself beside a token", async (t) => {
  const n5 = open(secured, certificate("n5", "node/n5"), await signToken());
  const announce = (node: string) => ({
    node,
    epoch: 1n,
    sequence: 1n,
    bootId: "b",
    address: "127.0.0.1:1",
    ttlMs: 60_000,
    holdingsRevision: 1n,
    holdings: { holdings: [] },
  });
  t.same(
    await n5
      .client(NodeService)
      .announce(announce("n5"))
      .then(({ verdict }) => verdict === AnnounceVerdict.ACCEPTED),
    true,
  );
  async function* streamed(node: string) {
    yield announce("n5");
    yield announce(node);
  }
  const lastOf = async (node: string) => {
    for await (const { verdict } of n5.client(NodeService).announceStream(streamed(node))) {
      t.equal(verdict, AnnounceVerdict.ACCEPTED);
    }
  };
  for (const node of ["n2", "N5", "n5/", ""]) {
    const refusal = {
      code: "PermissionDenied",
      message: `spiffe://cluster.local/weightline/node/n5 does not speak for node ${node}`,
    };
    t.match(await n5.client(NodeService).announce(announce(node)).catch(fromRpcError), refusal);
    t.match(await lastOf(node).catch(fromRpcError), refusal, "nor later on a stream that began as its own");
    t.match(await n5.client(NodeService).leave({ node, epoch: 1n, bootId: "b" }).catch(fromRpcError), {
      code: "PermissionDenied",
    });
  }
  const { nodes } = await n5.client(NodeService).listNodes({});
  t.same(
    nodes.map(({ name }) => name),
    ["n5"],
    "nobody else is there",
  );
});

t.test("tokens without TLS, where that is said, or where there is no certificate", async (t) => {
  const token = await signToken();
  for (const [what, settings] of [
    ["said", { ...ENFORCE, ...FILES, plaintext_tokens: "true" }],
    ["no certificate", ENFORCE],
  ] as const) {
    const controlPlane = await start(settings);
    t.equal(await codeOf(open(controlPlane, undefined, token), P2pService, P2pService.method.listSources), "Ok", what);
    t.equal(await codeOf(open(controlPlane), P2pService, P2pService.method.listSources), "Unauthenticated", what);
    t.equal(
      await codeOf(open(controlPlane, undefined, token), NodeService, NodeService.method.announce, { node: "n1" }),
      "PermissionDenied",
    );
  }
  const both = await start({ ...ENFORCE, ...FILES, plaintext_tokens: "true" });
  const n3 = open(both, certificate("n3", "node/n3"));
  t.equal(await codeOf(n3, NodeService, NodeService.method.listNodes), "Ok", "TLS on the same port");
});

t.test("a token that ends while it is remembered; an API that goes away, and comes back", async (t) => {
  const controlPlane = await start({ ...ENFORCE, ...FILES });
  const call = (token: string) =>
    codeOf(open(controlPlane, tlsOf(), token), HealthService, HealthService.method.getHealth);
  const before = api.reviews.length;
  const short = await signToken({ expS: 5 });
  t.equal(await call(short), "Ok");
  t.equal(await call(short), "Ok");
  t.equal(api.reviews.length, before + 1, "asked once");
  let last = "Ok";
  while (last === "Ok") {
    last = await call(short);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  t.equal(last, "Unauthenticated", "a cached yes ends with its token, long before 60 s");
  const known = await signToken();
  t.equal(await call(known), "Ok");
  api.answer = (reply) => reply.destroy();
  const fresh = await signToken();
  t.equal(await call(fresh), "Unchecked", "nobody is let in unchecked");
  t.equal(await call(known), "Ok", "what is remembered counts");
  t.match(readFileSync(logFile, "utf8"), /"event":"tokens-unchecked"/);
  api.answer = honestReview;
  let back = "Unchecked";
  while (back === "Unchecked") {
    back = await call(fresh);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  t.equal(back, "Ok", "the same token, soon after");
});

t.test("an API that takes a question and never answers: no call waits longer than 3 s for it", async (t) => {
  const controlPlane = await start({ ...ENFORCE, ...FILES });
  const asked = api.reviews.length;
  api.answer = () => undefined;
  const token = await signToken();
  const calls = Array.from({ length: 10 }, () =>
    codeOf(open(controlPlane, tlsOf(), token), HealthService, HealthService.method.getHealth),
  );
  t.same(new Set(await Promise.all(calls)), new Set(["Unchecked"]));
  t.equal(api.reviews.length, asked + 1, "asked once for all of them");
  api.answer = honestReview;
});

t.test(
  "the public keys of the Kubernetes API: it is asked with the control plane's own token, nobody else is",
  async (t) => {
    const proxy = await startApi(authority, t);
    for (const [server, own] of [
      [api, "Bearer own"],
      [proxy, undefined],
    ] as const) {
      const controlPlane = await start({
        ...ENFORCE,
        ...FILES,
        jwks_url: new URL(KEYS_PATH, server.url).href,
        token_issuer: ISSUER,
      });
      const before = server.authorizations.length;
      const channel = open(controlPlane, tlsOf(), await signToken());
      const found = await codeOf(channel, HealthService, HealthService.method.getHealth);
      // The other server's certificate is of an authority that the system does not know.
      t.equal(found, server === api ? "Ok" : "Unchecked");
      t.same(server.authorizations.slice(before), server === api ? [own] : []);
      const other = open(controlPlane, tlsOf(), await signToken({ key: (await generateKeyPair("RS256")).privateKey }));
      t.equal(
        await codeOf(other, HealthService, HealthService.method.getHealth),
        server === api ? "Unauthenticated" : "Unchecked",
      );
    }
  },
);

t.test("the headers that a token may come in", async (t) => {
  const token = await signToken();
  const client = open(secured, tlsOf()).client(HealthService);
  const codeBy = (...values: string[]) => {
    const headers = new Headers();
    for (const value of values) {
      headers.append("authorization", value);
    }
    return client.getHealth({}, { headers }).then(
      () => "Ok",
      (error: unknown) => fromRpcError(error).code,
    );
  };
  t.equal(await codeBy(`Bearer ${token}`), "Ok");
  t.equal(await codeBy(`bearer  ${token}`), "Ok");
  for (const value of [token, `Basic ${token}`, "Bearer ", `Bearer ${token} x`, `Bearer ${"a".repeat(20_000)}`]) {
    t.equal(await codeBy(value), "Unauthenticated", value.slice(0, 20));
  }
  t.equal(await codeBy(`Bearer ${token}`, `Bearer ${token}`), "Unauthenticated", "two");
});

t.test("the HTTP port: probes and metrics stay, what it tells of nodes does not", async (t) => {
  const controlPlane = await start({ ...ENFORCE, ...FILES, metrics: String(await freePort()) });
  const get = (path: string) => fetch(`http://127.0.0.1:${controlPlane.metricsPort}${path}`);
  for (const path of ["/v1/nodes", "/v1/sources", "/v1/transfers"]) {
    const reply = await get(path);
    t.equal(reply.status, 403, path);
    t.match(await reply.json(), { code: "PermissionDenied", message: /ask over gRPC/ });
  }
  t.equal((await get("/readyz")).status, 200);
  const call = open(controlPlane, tlsOf(), await signToken());
  t.equal(await codeOf(call, HealthService, HealthService.method.getHealth), "Ok");
  const metrics = await (await get("/metrics")).text();
  t.match(metrics, /weightline_token_check_seconds_count\{outcome="good"\} 1/);
  const [, left = "0"] =
    /weightline_certificate_valid_seconds\{uri="spiffe:\/\/cluster.local\/weightline\/control-plane"\} (\d+)/.exec(
      metrics,
    ) ?? [];
  t.ok(Number(left) > 80_000 && Number(left) < 86_400, left);
});

t.test("settings that cannot be used are told at the start", async (t) => {
  const broken = `${folder}/broken.json`;
  writeFileSync(broken, '{"keys":1}');
  const keys = { ...ENFORCE, token_issuer: "https://issuer.example" };
  const node = authority.sign("n9", { names: [uri("node/n9")] });
  for (const [settings, message] of [
    [{ ...keys, jwks_file: "/nowhere" }, "security.jwks_file /nowhere cannot be used: there is no such file"],
    [{ ...keys, jwks_file: broken }, `security.jwks_file ${broken} is no JSON Web Key Set`],
    [
      { ...ENFORCE, ...FILES, tls_key_file: "/nowhere" },
      "--security-tls-key-file /nowhere cannot be used: there is no such file",
    ],
    [
      { ...ENFORCE, ...FILES, tls_key_file: node.key },
      `--security-tls-key-file ${node.key} cannot be used: it is no unencrypted PEM key, or not that of ${own.chain}`,
    ],
    [
      { ...ENFORCE, ...FILES, tls_certificate_file: node.chain, tls_key_file: node.key },
      `--security-tls-certificate-file ${node.chain} cannot be used: it is that of spiffe://cluster.local/weightline/node/n9, not of spiffe://cluster.local/weightline/control-plane`,
    ],
  ] as const) {
    await t.rejects(start(settings), { code: "InvalidArgument", message }, message);
  }
});

t.test("security off: tokens and certificates of anybody are ignored", async (t) => {
  const off = await start({});
  const before = api.reviews.length;
  for (const token of [undefined, "nonsense", await signToken({ expS: -1 })]) {
    const channel = open(off, undefined, token);
    t.equal(await codeOf(channel, P2pService, P2pService.method.listSources), "Ok");
    t.equal(
      await codeOf(channel, NodeService, NodeService.method.announce, { node: "n1" }),
      "InvalidArgument",
      "as ever",
    );
  }
  t.equal(api.reviews.length, before, "nobody is asked");
});

t.test("no token and no key in logs and errors", async (t) => {
  const text = readFileSync(logFile, "utf8");
  t.match(text, /"event":"call-failed".*Unauthenticated/, "there was something to tell");
  t.notMatch(text, /ey[A-Za-z0-9_-]{20,}/, "no token, nor a part of one");
  t.notMatch(text, /PRIVATE KEY|BEGIN/, "no key");
  t.ok(api.reviews.length > 5);
  for (const { spec } of api.reviews) {
    t.notOk(text.includes(spec.token), "none that was given");
  }
});
