// gRPC over TLS with certificates that name who shows them: real certificates, real connections.
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { connect, createSecureContext, createServer as createTlsServer, type TLSSocket } from "node:tls";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@weightline/proto/grpc-health";
import { HealthService } from "@weightline/proto/health";
import {
  CALLER,
  type CertificateFiles,
  type ChannelTls,
  channelTo,
  createAccess,
  createCertificateFiles,
  createGrpcChannel,
  createGrpcServer,
  createHealthStatus,
  createLogger,
  describeCaller,
  fromRpcError,
  route,
  type WeightlineError,
} from "@weightline/runtime";
import t from "tap";
import { createAuthority, readSigned, type Signed } from "../../../test/support/certificates.ts";

const DOMAIN = "test.local";
const folder = mkdtempSync(`${tmpdir()}/weightline-secure-rpc-`);
t.teardown(() => rmSync(folder, { recursive: true }));
const authority = createAuthority(`${folder}/ca`);
const stranger = createAuthority(`${folder}/stranger`, "somebody else");
const uri = (rest: string) => `URI:spiffe://${DOMAIN}/weightline/${rest}`;
const logFile = `${folder}/log`;
const log = createLogger({ program: "test", level: "trace", format: "json", file: logFile });
const logged = () => readFileSync(logFile, "utf8");
const events = (name: string) =>
  logged()
    .split("\n")
    .filter((line) => line.includes(`"event":"${name}"`));

const open = ({ chain, key }: Signed, authorities = authority.certificate): CertificateFiles => {
  const named = (path: string) => ({ path, setting: "--test" });
  const files = createCertificateFiles({
    files: { chain: named(chain), key: named(key), authorities: named(authorities) },
    trustDomain: DOMAIN,
    may: () => undefined,
    log,
    rereadIntervalMs: 50,
  });
  t.teardown(() => files.stop());
  return files;
};

/** Waits for something that another task does; its ceiling is no measure. */
async function eventually(what: string, done: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = performance.now() + 20_000;
  while (!(await done())) {
    if (performance.now() > endMs) {
      throw new Error(`it never came: ${what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const served = authority.sign("server", { names: [uri("control-plane")] });
const serverFiles = open(served);
const health = createHealthStatus([]);
health.set(true);
let arrived = Promise.withResolvers<void>();
let released = Promise.withResolvers<void>();
const routes = [
  health.route,
  route(HealthService, {
    async getHealth(_request, { values, requestHeader }) {
      const caller = values.get(CALLER);
      if (requestHeader.has("wait")) {
        arrived.resolve();
        await released.promise;
      }
      return {
        version: caller === undefined ? "" : describeCaller(caller, DOMAIN),
        status: requestHeader.get("authorization") ?? "no token",
      };
    },
  }),
];
const authorize = createAccess({
  rules: { [Health.typeName]: ["anyone"], [HealthService.typeName]: ["node", "operator", "account"] },
  others: [],
  trustDomain: DOMAIN,
});
const server = await createGrpcServer({
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
  routes,
  security: { certificates: serverFiles, authorize, log },
});
t.teardown(() => server.stop(0));

const channel = (tls?: ChannelTls, port = server.port) => {
  const made = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port }], ...(tls === undefined ? {} : { tls }) });
  t.teardown(() => made.close());
  return made;
};
const toServer = (files: CertificateFiles) => channelTo(files.clientContext, DOMAIN, { kind: "control-plane" });
/** A client's context made by hand, for certificates that the agent itself would not open. */
const asIs = (signed: Signed | undefined, more: object = {}): ChannelTls => ({
  context: createSecureContext({
    ca: readFileSync(authority.certificate),
    ...(signed === undefined ? {} : readSigned(signed)),
    ...more,
  }),
  checkPeer: () => undefined,
});
const call = (tls?: ChannelTls, port?: number) => channel(tls, port).client(HealthService).getHealth({});
const failure = (promise: Promise<unknown>): Promise<WeightlineError> =>
  promise.then(
    () => {
      throw new Error("it was let in");
    },
    (error: unknown) => fromRpcError(error),
  );

t.test("a certificate that names a node: its call is from that node", async (t) => {
  const node = open(authority.sign("node-a", { names: [uri("node/a"), "DNS:a.example"] }));
  t.match(await call(toServer(node)), { version: `spiffe://${DOMAIN}/weightline/node/a`, status: "no token" });
  const operator = open(authority.sign("operator", { names: [uri("operator/jo")] }));
  t.match(await call(toServer(operator)), { version: `spiffe://${DOMAIN}/weightline/operator/jo` });
});

t.test("certificates that are refused, each in words", async (t) => {
  const refused: Array<[string, Signed | undefined, RegExp]> = [
    [
      "another authority's",
      stranger.sign("x", { names: [uri("node/a")] }),
      /no authority that is known here signed it/,
    ],
    ["expired", authority.sign("old", { names: [uri("node/a")], fromS: -7200, toS: -3600 }), /it has expired/],
    ["not valid yet", authority.sign("soon", { names: [uri("node/a")], fromS: 3600 }), /it is not valid yet/],
    ["two URI names", authority.sign("two", { names: [uri("node/a"), uri("node/b")] }), /it has 2 URI names/],
    ["no URI name", authority.sign("none", { names: ["DNS:a"] }), /it has 0 URI names/],
    ["no names", authority.sign("bare"), /it has 0 URI names/],
    [
      "another trust domain",
      authority.sign("far", { names: ["URI:spiffe://far.local/weightline/node/a"] }),
      /is none of trust domain test.local/,
    ],
    ["a path below a node", authority.sign("below", { names: [uri("node/a/b")] }), /is none of trust domain/],
    ["a node without a name", authority.sign("nameless", { names: [uri("node/")] }), /is none of trust domain/],
    [
      "made for servers alone",
      authority.sign("purpose", { names: [uri("node/a")], usage: "serverAuth" }),
      /not made for clients/,
    ],
    ["none at all", undefined, /needs a client certificate/],
  ];
  for (const [what, signed, words] of refused) {
    const error = await failure(call(asIs(signed)));
    t.match(error, { code: "Unauthenticated", message: words }, what);
    t.match(error.requestId, /^[0-9a-f]{8}$/, `${what}: the log has it`);
  }
  t.ok(events("certificate-refused").length >= 9, "each was logged");
  const wrong = open(authority.sign("other-control-plane", { names: [uri("control-plane")] }));
  t.match(await failure(call(toServer(wrong))), {
    code: "PermissionDenied",
    message:
      /spiffe:\/\/test.local\/weightline\/control-plane may not call model_express.health.HealthService\/GetHealth/,
  });
  t.match(await failure(call()), { code: "Unauthenticated", message: /needs TLS and a client certificate/ }, "no TLS");
});

t.test("a name of another kind that spells a URI is no URI", async (t) => {
  const sly = authority.sign("sly", { names: [uri("node/a"), "email:x@y"] });
  t.match(await call(asIs(sly)), { version: /node\/a$/ }, "beside one URI, other kinds do not matter");
  const confused = authority.sign("confused", { names: [`DNS:a, ${uri("node/a")}`] });
  t.match(await failure(call(asIs(confused))), { code: "Unauthenticated", message: /0 URI names|cannot be read/ });
});

t.test(
  "probes need nothing, with TLS and without; a server without its authority is left alone by clients",
  async (t) => {
    t.equal((await channel().client(Health).check({})).status, Status.SERVING);
    t.equal((await channel(asIs(undefined)).client(Health).check({})).status, Status.SERVING);
    const own = open(stranger.sign("node-s", { names: [uri("node/a")] }), stranger.certificate);
    t.match(await failure(call(toServer(own))), { code: "Unavailable", message: /self-signed|unable to|certificate/ });
  },
);

t.test("a client refuses a server that is somebody else", async (t) => {
  const imposter = await createGrpcServer({
    bind: ["127.0.0.1"],
    port: 0,
    portFlag: "--port",
    routes,
    security: { certificates: open(authority.sign("node-b", { names: [uri("node/b")] })), authorize, log },
  });
  t.teardown(() => imposter.stop(0));
  const a = open(authority.sign("node-a2", { names: [uri("node/a")] }));
  t.match(await failure(call(channelTo(a.clientContext, DOMAIN, { kind: "node", name: "c" }), imposter.port)), {
    code: "Unavailable",
    message:
      /certificate is that of spiffe:\/\/test.local\/weightline\/node\/b, not of spiffe:\/\/test.local\/weightline\/node\/c/,
  });
  t.match(await failure(call(toServer(a), imposter.port)), { code: "Unavailable", message: /not of .*control-plane/ });
  t.match(await call(channelTo(a.clientContext, DOMAIN, { kind: "node", name: "b" }), imposter.port), {
    version: /node\/a/,
  });
});

/** A connection of tls.connect, its handshake done. */
async function dial(port: number, more: object): Promise<TLSSocket> {
  const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false, ALPNProtocols: ["h2"], ...more });
  t.teardown(() => socket.destroy());
  await once(socket, "secureConnect");
  return socket;
}

t.test("TLS 1.2 is refused", async (t) => {
  const told = () => events("handshake-failed").filter((line) => line.includes('"the other side speaks no TLS 1.3"'));
  await t.rejects(dial(server.port, { maxVersion: "TLSv1.2" }), { code: /ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION/ });
  await eventually("the event", () => told().length > 0);
  t.notMatch(logged(), /[0-9A-F]{16}:error/, "no address of memory");
  const socket = await dial(server.port, {});
  t.equal(socket.getProtocol(), "TLSv1.3");
  const old = await failure(
    call(asIs(authority.sign("node-o", { names: [uri("node/a")] }), { maxVersion: "TLSv1.2" })),
  );
  t.match(old, {
    code: "Unavailable",
    message: /^cannot be reached: the other side does not speak this version of TLS$/,
  });
});

t.test("no session is resumed; the same client resumes at a server that allows it", async (t) => {
  const identity = readSigned(authority.sign("node-r", { names: [uri("node/a")] }));
  const twice = async (port: number): Promise<boolean> => {
    const first = connect({ host: "127.0.0.1", port, rejectUnauthorized: false, ALPNProtocols: ["h2"], ...identity });
    t.teardown(() => first.destroy());
    // Both the session of the handshake and those that the server sends later are tried.
    const sessions: Buffer[] = [];
    first.on("session", (session: Buffer) => sessions.push(session));
    await once(first, "secureConnect");
    // HTTP/2's preface, so that the server answers and its tickets, sent before, are here.
    first.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    await once(first, "data");
    const own = first.getSession();
    const all = own === undefined ? sessions : [...sessions, own];
    t.ok(all.length > 0, "there is something to resume with");
    first.destroy();
    let reused = false;
    for (const session of all) {
      const second = await dial(port, { ...identity, session });
      reused ||= second.isSessionReused();
      second.destroy();
    }
    return reused;
  };
  const plain = createTlsServer({ ...readSigned(served), ALPNProtocols: ["h2"] }, (socket) => {
    socket.on("error", () => undefined);
    socket.on("data", () => socket.write("x"));
  });
  plain.listen(0, "127.0.0.1");
  await once(plain, "listening");
  t.teardown(() => plain.close());
  t.equal(await twice((plain.address() as { port: number }).port), true, "this client can resume");
  t.equal(await twice(server.port), false);
});

t.test("rotation: running calls end well, new connections use the new files, broken ones change nothing", async (t) => {
  const signed = authority.sign("rotating", { names: [uri("control-plane")] });
  const rotating = await createGrpcServer({
    bind: ["127.0.0.1"],
    port: 0,
    portFlag: "--port",
    routes,
    security: { certificates: open(signed), authorize, log },
  });
  t.teardown(() => rotating.stop(0));
  const nodeSigned = authority.sign("node-t", { names: [uri("node/t")] });
  const node = open(nodeSigned);
  const serial = async () => (await dial(rotating.port, {})).getPeerX509Certificate()?.serialNumber;
  const before = await serial();

  released = Promise.withResolvers();
  arrived = Promise.withResolvers();
  const running = channel(toServer(node), rotating.port)
    .client(HealthService)
    .getHealth({}, { headers: { wait: "1" } });
  await arrived.promise;
  const renewed = events("certificates-renewed").length;
  authority.sign("rotating", { names: [uri("control-plane")] });
  authority.sign("node-t", { names: [uri("node/u")] });
  await eventually("both programs have the new files", () => events("certificates-renewed").length === renewed + 2);
  const after = await serial();
  t.not(after, before, "a new connection sees the new certificate");
  released.resolve();
  t.match(await running, { version: /node\/t/ }, "the call that ran meanwhile");
  t.match(await call(toServer(node), rotating.port), { version: /node\/u/ }, "the client shows its new one");

  const kept = events("certificates-kept").length;
  writeFileSync(signed.chain, "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n");
  await eventually("it is told", () => events("certificates-kept").length > kept);
  t.equal(await serial(), after, "the old one stays");
  t.match(events("certificates-kept").at(-1), /no PEM certificate that can be read/);
  // Ten more readings of the same broken file: it is not told again.
  await new Promise((resolve) => setTimeout(resolve, 500));
  t.equal(events("certificates-kept").length, kept + 1, "once");
  for (const [what, options, words] of [
    ["expired", { names: [uri("control-plane")], fromS: -7200, toS: -3600 }, /it expired at/],
    ["nobody's", { names: ["DNS:x"] }, /it has 0 URI names/],
  ] as const) {
    const told = events("certificates-kept").length;
    authority.sign("rotating", options);
    await eventually(what, () => events("certificates-kept").length > told);
    t.match(events("certificates-kept").at(-1), words, what);
    t.equal(await serial(), after, `${what}: the old one stays`);
  }
  authority.sign("rotating", { names: [uri("control-plane")] });
  await eventually("mended", async () => (await serial()) !== after);
});

t.test("another authority takes over: the old one's certificates are refused on new connections", async (t) => {
  const bundle = `${folder}/bundle.crt`;
  writeFileSync(bundle, readFileSync(authority.certificate));
  const moving = await createGrpcServer({
    bind: ["127.0.0.1"],
    port: 0,
    portFlag: "--port",
    routes,
    security: {
      certificates: open(authority.sign("moving", { names: [uri("control-plane")] }), bundle),
      authorize,
      log,
      maxConnectionAgeMs: 2000,
    },
  });
  t.teardown(() => moving.stop(0));
  const old = asIs(authority.sign("node-m", { names: [uri("node/m")] }));
  const fresh = asIs(stranger.sign("node-n", { names: [uri("node/n")] }));
  const connected = channel(old, moving.port).client(HealthService);
  t.match(await connected.getHealth({}), { version: /node\/m/ });
  t.match(await failure(call(fresh, moving.port)), { code: "Unauthenticated" });
  writeFileSync(bundle, readFileSync(stranger.certificate));
  await eventually("the new authority counts", () =>
    call({ ...fresh, checkPeer: () => undefined }, moving.port).then(
      () => true,
      () => false,
    ),
  );
  t.match(await failure(call({ ...old, checkPeer: () => undefined }, moving.port)), {
    code: "Unauthenticated",
    message: /no authority that is known here/,
  });
  await eventually("the connection that was there is asked to come again", () =>
    connected.getHealth({}).then(
      () => false,
      (error: unknown) => fromRpcError(error).code === "Unauthenticated",
    ),
  );
});

t.test("a connection ends with its client's certificate", async (t) => {
  const short = asIs(authority.sign("short", { names: [uri("node/s")], toS: 6 }));
  const client = channel(short).client(HealthService);
  t.match(await client.getHealth({}), { version: /node\/s/ });
  await eventually("it is refused", () =>
    client.getHealth({}).then(
      () => false,
      (error: unknown) => /it has expired/.test(fromRpcError(error).message),
    ),
  );
});

t.test("a stranger is answered before its message is there", async (t) => {
  /** The code of a call that never sends the end of its 64 MiB; undefined when no answer comes before `asked` does. */
  const codeOf = async (path: string, asked: Promise<unknown>) => {
    const session = connectHttp2(`http://127.0.0.1:${server.port}`);
    t.teardown(() => session.destroy());
    const headers = { ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers" };
    const stream = session.request(headers);
    stream.on("error", () => undefined);
    stream.write(Buffer.from([0, 4, 0, 0, 0]));
    stream.write(Buffer.alloc(10_000));
    const answer = once(stream, "response").then(([reply]: Array<Record<string, string>>) => reply?.["grpc-status"]);
    return Promise.race([answer, asked.then(() => undefined)]);
  };
  t.equal(await codeOf(`/${HealthService.typeName}/GetHealth`, new Promise(() => undefined)), "16");
  const others = channel(asIs(authority.sign("node-l", { names: [uri("node/l")] }))).client(HealthService);
  const some = async () => {
    for (let i = 0; i < 20; i++) {
      await others.getHealth({});
    }
  };
  t.equal(await codeOf(`/${Health.typeName}/Check`, some()), undefined, "one that is let in is waited for");
});

t.test("connections that say nothing, or no HTTP/2, and a server that stops: nothing stays", async (t) => {
  const stopping = await createGrpcServer({
    bind: ["127.0.0.1"],
    port: 0,
    portFlag: "--port",
    routes,
    security: { certificates: serverFiles, authorize, log },
  });
  const silent = connectTcp(stopping.port, "127.0.0.1");
  await once(silent, "connect");
  const halfTls = connectTcp(stopping.port, "127.0.0.1");
  await once(halfTls, "connect");
  halfTls.write(Buffer.from([0x16, 3, 1]));
  const noise = connectTcp(stopping.port, "127.0.0.1");
  await once(noise, "connect");
  noise.write("GET / HTTP/1.1\r\n\r\n");
  const ended = (socket: Socket) => {
    socket.resume();
    socket.on("error", () => undefined);
    return once(socket, "close");
  };
  await ended(noise);
  t.match(await call(asIs(authority.sign("node-q", { names: [uri("node/q")] })), stopping.port), {
    version: /node\/q/,
  });
  // A call that never ends, whatever it is told.
  released = Promise.withResolvers();
  arrived = Promise.withResolvers();
  const session = connectHttp2(`https://127.0.0.1:${stopping.port}`, {
    ...readSigned(authority.sign("node-e", { names: [uri("node/e")] })),
    rejectUnauthorized: false,
  });
  session.on("error", () => undefined);
  const stream = session.request({
    ":method": "POST",
    ":path": `/${HealthService.typeName}/GetHealth`,
    "content-type": "application/grpc",
    te: "trailers",
    wait: "1",
  });
  stream.on("error", () => undefined);
  stream.end(Buffer.from([0, 0, 0, 0, 0]));
  const cut = once(session, "close");
  await arrived.promise;
  const both = Promise.all([ended(silent), ended(halfTls)]);
  await stopping.stop(100);
  await both;
  await cut;
  released.resolve();
  const free = createServer();
  free.listen(stopping.port, "127.0.0.1");
  await once(free, "listening");
  free.close();
  t.pass("the port is free again");
});

t.test("security off: no caller, tokens are ignored and stay in the header as they came", async (t) => {
  const off = await createGrpcServer({ bind: ["127.0.0.1"], port: 0, portFlag: "--port", routes });
  t.teardown(() => off.stop(0));
  const reply = await channel(undefined, off.port)
    .client(HealthService)
    .getHealth({}, { headers: { authorization: "Bearer nonsense" } });
  t.match(reply, { version: "", status: "Bearer nonsense" });
});
