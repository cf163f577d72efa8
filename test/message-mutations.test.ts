// What strangers and broken programs send to an agent: changed messages of AgentService over its Unix socket, of PeerService and
// WorkerService over gRPC, and bytes that are no messages at all. Each is answered in words or its connection closed; the agent stays
// the same process, no call of a client that behaves fails meanwhile, nothing appears in the store, memory stays flat.
import { readdirSync } from "node:fs";
import { type ClientHttp2Session, connect as connectHttp2 } from "node:http2";
import { connect, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Code } from "@connectrpc/connect";
import { filesIdentity } from "@weightline/proto";
import { AgentService } from "@weightline/proto/local";
import { WorkerService } from "@weightline/proto/p2p";
import { PeerService } from "@weightline/proto/peer";
import { createGrpcChannel, parseAddress } from "@weightline/runtime";
import t, { type Test } from "tap";
import { bases, changedCall, envelope, makeCall } from "./support/changed-calls.ts";
import { createCluster } from "./support/cluster.ts";
import { heapBytes, INSPECTABLE } from "./support/heap.ts";
import { createRandom, mutateBytes, mutateJson, type Random } from "./support/mutation.ts";
import { readAnswers } from "./support/raw-http.ts";
import { writeTensors } from "./support/safetensors-file.ts";

/** Of each kind, local and gRPC; the tier `fuzz` sends more. */
const MESSAGES = Number(process.env["WEIGHTLINE_MESSAGE_MUTATIONS"] ?? 2000);
const SEED = Number(process.env["WEIGHTLINE_FUZZ_SEED"] ?? 1);
const TIME_MS = 540_000;
/** A connection or call that has not ended by then hangs. Above the agent's own limit for a request that stays unfinished. */
const HANG_MS = 30_000;
/** Sessions of HTTP/2 that are no calls: each costs a connection. */
const SESSIONS = Math.min(MESSAGES / 10, 1500);
const REQUESTS_PER_CONNECTION = 12;
const CALLS_AT_ONCE = 32;
/** Of the heap after its garbage has gone: caches of code that first ran meanwhile. A leak of a request would be more. */
const HEAP_GROWTH_BYTES = 12 * 1024 * 1024;

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const agent = await cluster.startAgent("a", ["--log-level", "info"], INSPECTABLE);
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [3000] } });
await cluster.mxctl(["load", path, "--model-name", "held"], agent);
/** How it ended, once it has. */
let death: string | undefined;
void agent.program.exited.then((code) => {
  death = `the agent ended with ${code}:
${agent.program.output().slice(-4000)}`;
});
const [holding] = (await agent.client.status({})).holdings;
const holdingId = holding?.holdingId ?? "";

function storeNames(): string[] {
  return readdirSync(agent.store, { recursive: true, encoding: "utf8" }).sort();
}

/** Acquires and releases; true when both went as they should. */
async function useHolding(): Promise<boolean> {
  let leaseId = "";
  for await (const { event } of agent.client.acquire({
    wanted: { name: { case: "model", value: { modelName: "held" } } },
  })) {
    if (event.case === "held") {
      leaseId = event.value.leaseId;
    }
  }
  return (await agent.client.release({ leaseId })).released;
}

/** A client that behaves, for as long as `work` takes: gives the count of its rounds. */
async function besideOthers(work: Promise<unknown>): Promise<number> {
  let over = false;
  let rounds = 0;
  void work.finally(() => {
    over = true;
  });
  while (!over) {
    const health = await fetch(`http://127.0.0.1:${agent.metricsPort}/healthz`);
    if (health.status !== 200 || !(await useHolding())) {
      throw new Error("a client that behaves was not served");
    }
    rounds += 1;
    await sleep(100);
  }
  await work;
  return rounds;
}

/** What must be as before, whatever was sent. */
async function unchanged(t: Test, before: { names: string[]; bytes: number }): Promise<void> {
  const status = await agent.client.status({});
  t.match(status, { leases: 0, state: 1, holdings: [{ holdingId, state: 2 }] });
  t.equal(status.holdings.length, 1);
  t.strictSame(storeNames(), before.names, "nothing new in the store");
  const grown = (await heapBytes(agent.program)) - before.bytes;
  t.ok(grown < HEAP_GROWTH_BYTES, `the heap grew by ${Math.round(grown / 1024)} KiB`);
  const errors = agent.program
    .output()
    .split("\n")
    .filter((line) => /"level":"?(error|fatal|50|60)/.test(line));
  t.strictSame(errors.slice(0, 3), [], "no failure of the agent's own in its log");
}

// Nothing here may succeed in changing anything: names that nobody holds, paths that are not there. Drain is left out.
const missing = { wanted: { name: { case: "model", value: { modelName: "missing", revision: "r" } }, rank: 1 } };
const LOCAL = bases(AgentService, {
  Acquire: [
    { ...missing, timeoutS: 0.05 },
    {
      wanted: { name: { case: "identity", value: { ...filesIdentity("missing"), tensorParallelSize: 2 } } },
      timeoutS: 0.05,
    },
    { wanted: { name: { case: "sourceId", value: "0123456789abcdef" } }, timeoutS: 0.05 },
  ],
  Attach: [{ leaseId: "0".repeat(32) }],
  Release: [{ leaseId: "0".repeat(32) }],
  Status: [{}],
  Transfers: [{}],
  Load: [{ path: "/nowhere/at/all", modelName: "missing", revision: "r", rank: 1, replace: true }],
  Pull: [missing],
  Evict: [{ ...missing, force: true }],
});
const PEER = [
  ...bases(PeerService, {
    Find: [
      { subject: { case: "source", value: { sourceId: "0123456789abcdef", rank: 1 } } },
      { subject: { case: "objectDigest", value: Buffer.alloc(32, 7) } },
    ],
    Open: [
      {
        holdingId: "0".repeat(32),
        child: "c",
        streams: 2,
        minVersion: 1,
        maxVersion: 1,
        algorithm: "xxh3-128",
        epoch: 5n,
      },
    ],
    ReportDamage: [
      { holdingId: "0".repeat(32), chunks: [0n, 1n, 2n ** 63n], child: "c" },
      { holdingId, chunks: [0n], child: "c" },
    ],
    Fill: [{ identity: { ...filesIdentity("missing"), dtype: "BF16" }, rank: 2 }],
    Transfers: [{}],
  }),
  ...bases(WorkerService, { GetTensorManifest: [{ mxSourceId: "0123456789abcdef", workerId: `${holdingId}-0` }] }),
];

const CONTENT_TYPES = [
  "application/json",
  "application/proto",
  "application/connect+json",
  "application/connect+proto",
  "application/grpc",
  "application/x-www-form-urlencoded",
  "text/plain; charset=utf-16",
  "application/json; charset=nonsense",
  "",
];
const JSON_TOKENS = [
  '"__proto__":{}',
  '{"constructor":1}',
  "1e999",
  "\ufeff",
  '"\\ud800"',
  "[[[[[[[[",
  "null",
  "\u0000",
  '"',
].map((token) => Buffer.from(token));
const HTTP_TOKENS = [
  "\r\n",
  "\r\n\r\n",
  "\n",
  "Content-Length: 5\r\n",
  "Transfer-Encoding: chunked\r\n",
  "GET / HTTP/1.1\r\n\r\n",
  "HTTP/1.0",
  "HTTP/9.9",
  "\u0000",
  "Expect: 100-continue\r\n",
  "Upgrade: h2c\r\n",
  "0\r\n\r\n",
].map((token) => Buffer.from(token));

/** A request of the local API, changed somewhere: message, envelope, headers, or the bytes of it all. */
function localRequest(random: Random): Buffer {
  const base = random.pick(LOCAL);
  const asJson = random.oneIn(2);
  let body: Buffer;
  if (!asJson) {
    body = mutateBytes(base.message, random);
  } else if (random.oneIn(2)) {
    body = Buffer.from(JSON.stringify(mutateJson(JSON.parse(base.json), random)) ?? "");
  } else {
    body = mutateBytes(Buffer.from(base.json), random, JSON_TOKENS);
  }
  const right = `application/${base.stream ? "connect+" : ""}${asJson ? "json" : "proto"}`;
  const type = random.oneIn(10) ? random.pick(CONTENT_TYPES) : right;
  if (base.stream) {
    body = envelope(random, body);
  }
  const name = random.oneIn(20)
    ? mutateBytes(Buffer.from(base.method), random)
        .toString("latin1")
        .replace(/[\r\n]/g, "")
    : base.method;
  const length = random.oneIn(80)
    ? random.pick(["-1", "1e3", "99999999", "4294967296", "5, 5", "0x10", " "])
    : String(body.length);
  const more = random.oneIn(25)
    ? random.pick([
        `X-Filler: ${"a".repeat(random.pick([100, 9000, 20_000]))}\r\n`,
        "Connect-Protocol-Version: 7\r\n",
        `Connect-Timeout-Ms: ${random.pick(["0", "-5", "1e9", "99999999999", "x"])}\r\n`,
        "Content-Encoding: gzip\r\n",
        "Connect-Content-Encoding: br\r\n",
        "__proto__: x\r\nconstructor: y\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: other\r\n",
        "X\u00ff: \u00fe\r\n",
      ])
    : "";
  const verb = random.oneIn(20) ? random.pick(["GET", "PUT", "OPTIONS", "CONNECT", "PATCH", "TRACE", "X"]) : "POST";
  const head = `${verb} /${base.service}/${name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${type}\r\nConnect-Protocol-Version: 1\r\nContent-Length: ${length}\r\n${more}\r\n`;
  const whole = Buffer.concat([Buffer.from(head, "latin1"), body]);
  return random.oneIn(40) ? mutateBytes(whole, random, HTTP_TOKENS) : whole;
}

/** Sends bytes, ends its side, and gives all that comes back until the other side closes. */
async function exchange(dial: () => Socket, bytes: Buffer): Promise<Buffer> {
  const socket = dial();
  const pieces: Buffer[] = [];
  socket.on("data", (piece: Buffer) => pieces.push(piece));
  socket.on("error", () => undefined);
  const closed = new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`a connection did not end within ${HANG_MS} ms`)), HANG_MS);
    socket.once("close", () => {
      clearTimeout(timer);
      if (death !== undefined) {
        reject(new Error(death));
      }
      resolve();
    });
  });
  socket.end(bytes);
  await closed;
  return Buffer.concat(pieces);
}

const CONNECT_CODES = new Set([
  "canceled",
  "invalid_argument",
  "deadline_exceeded",
  "not_found",
  "already_exists",
  "permission_denied",
  "resource_exhausted",
  "failed_precondition",
  "aborted",
  "out_of_range",
  "unimplemented",
  "unavailable",
  "data_loss",
]);

/** Code of a Connect error in an answer's body or in the end of its stream; undefined when it has none. */
function connectCode(answer: { headers: Map<string, string>; body: Buffer }): string | undefined {
  // The detail after it has a code of its own, in capitals.
  return /"code":"([a-z_]+)"/.exec(answer.body.toString("utf8"))?.[1];
}

t.test(`local API: ${MESSAGES} changed requests, seed ${SEED}`, { timeout: TIME_MS }, async (t) => {
  const random = createRandom(SEED);
  const kinds = new Map<string, number>();
  const send = async (count: number) => {
    // A request that breaks HTTP is the last of its connection: what was sent after it counts for nothing.
    for (let taken = 0; taken < count; ) {
      const requests = Array.from({ length: REQUESTS_PER_CONNECTION }, () => localRequest(random));
      const { answers, rest } = readAnswers(
        await exchange(() => connect({ path: agent.socket, allowHalfOpen: true }), Buffer.concat(requests)),
      );
      if (rest.length > 0 && !rest.toString("latin1").startsWith("HTTP/1.1 ")) {
        t.fail(`no answer of HTTP: ${rest.toString("latin1").slice(0, 200)}`);
      }
      taken += Math.min(REQUESTS_PER_CONNECTION, answers.length + 1);
      for (const answer of answers) {
        const code = connectCode(answer);
        if ((code !== undefined && !CONNECT_CODES.has(code)) || (answer.status >= 500 && code === undefined)) {
          const text = answer.body.toString("latin1");
          const id = /request ([0-9a-f]{8})/.exec(text)?.[1] ?? "-";
          const cause = agent.program
            .output()
            .split("\n")
            .filter((line) => line.includes(id));
          t.fail(`status ${answer.status}, code ${code}: ${text.slice(0, 300)}\n${cause.join("\n")}`);
        }
        const kind = `${answer.status} ${code ?? ""}`.trim();
        kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      }
    }
  };
  await send(Math.min(MESSAGES / 4, 2000));
  const before = { names: storeNames(), bytes: await heapBytes(agent.program) };
  const rounds = await besideOthers(Promise.all([send(MESSAGES / 2), send(MESSAGES / 2)]));
  t.ok(rounds > 0, `a client that behaves was served ${rounds} times`);
  t.comment(JSON.stringify(Object.fromEntries(kinds)));
  const answered = [...kinds.values()].reduce((sum, count) => sum + count, 0);
  t.ok(answered > MESSAGES / 2, `${answered} answers`);
  for (const kind of ["400 invalid_argument", "415", "200"]) {
    t.ok(kinds.has(kind), `some were answered ${kind}`);
  }
  await unchanged(t, before);
});

async function countOf(messages: AsyncIterable<unknown>): Promise<number> {
  let count = 0;
  for await (const _message of messages) {
    count += 1;
  }
  return count;
}

function rawRequest(method: string, type: string, body: Buffer, length = body.length): Buffer {
  const head = `POST /weightline.local.v1.AgentService/${method} HTTP/1.1\r\nHost: x\r\nContent-Type: ${type}\r\nContent-Length: ${length}\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), body]);
}

t.test("requests that once failed", async (t) => {
  const before = { names: storeNames(), bytes: await heapBytes(agent.program) };
  const ask = async (bytes: Buffer) => {
    const { answers } = readAnswers(await exchange(() => connect({ path: agent.socket, allowHalfOpen: true }), bytes));
    return answers.map((answer) => `${answer.status} ${connectCode(answer)}`);
  };
  // A caller that leaves in the middle of a request, behind others that are answered, ended the agent.
  for (let i = 0; i < 60; i++) {
    const whole = rawRequest("Status", "application/json", Buffer.from("{}"));
    const half = rawRequest(
      i % 2 === 0 ? "Release" : "Acquire",
      i % 3 === 0 ? "text/x" : "application/json",
      Buffer.from("{"),
      100,
    );
    const socket = connect(agent.socket);
    socket.on("error", () => undefined);
    socket.on("data", () => undefined);
    socket.write(Buffer.concat([whole, half]));
    await sleep(i % 10);
    socket.destroy();
  }
  t.ok(await useHolding());
  // Bytes that are no message were called a failure of the agent's own.
  t.strictSame(await ask(rawRequest("Release", "application/proto", Buffer.from([0x07, 0x00]))), [
    "400 invalid_argument",
  ]);
  const bad = Buffer.from([0, 0, 0, 0, 2, 0x07, 0x00]);
  t.strictSame(await ask(rawRequest("Acquire", "application/connect+proto", bad)), ["200 invalid_argument"]);
  // A wait of no whole number of milliseconds was, too.
  const timeoutS = 0.050_5;
  await t.rejects(countOf(agent.client.acquire({ ...(missing as object), timeoutS })), {
    code: Code.Unavailable,
  });
  await unchanged(t, before);
});

t.test("calls that once failed", async (t) => {
  const channel = createGrpcChannel({ addresses: [parseAddress(agent.address, "address")] });
  t.teardown(() => channel.close());
  // A chunk that the object does not have made the holding damaged.
  for (const chunk of [1n, 2n ** 63n, 2n ** 64n - 1n]) {
    await t.rejects(channel.client(PeerService).reportDamage({ holdingId, chunks: [0n, chunk], child: "c" }), {
      code: Code.InvalidArgument,
    });
  }
  t.equal((await channel.client(PeerService).reportDamage({ holdingId, chunks: [0n], child: "c" })).confirmed, false);
  t.ok(await useHolding());
});

/** One changed call of a peer. */
async function grpcCall(session: ClientHttp2Session, random: Random): Promise<string> {
  const outcome = await makeCall(session, changedCall(PEER, random), HANG_MS);
  if (death !== undefined) {
    throw new Error(death);
  }
  return outcome;
}

t.test(`gRPC: ${MESSAGES} changed calls of peers, seed ${SEED}`, { timeout: TIME_MS }, async (t) => {
  const random = createRandom(SEED + 1);
  const kinds = new Map<string, number>();
  const send = async (count: number) => {
    let session: ClientHttp2Session | undefined;
    let left = count;
    const one = async () => {
      while (left > 0) {
        left -= 1;
        if (session === undefined || session.destroyed || session.closed) {
          session = connectHttp2(`http://${agent.address}`);
          session.on("error", () => undefined);
        }
        const outcome = await grpcCall(session, random);
        const kind = outcome.split(" ").slice(0, 2).join(" ");
        if (kind === "grpc 2" || kind === "grpc 13") {
          t.fail(`answered as a failure of the agent's own: ${outcome}`);
          left = 0;
        }
        kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
      }
    };
    await Promise.all(Array.from({ length: CALLS_AT_ONCE }, one));
    session?.destroy();
  };
  await send(Math.min(MESSAGES / 4, 2000));
  const before = { names: storeNames(), bytes: await heapBytes(agent.program) };
  const rounds = await besideOthers(send(MESSAGES));
  t.ok(rounds > 0, `a client that behaves was served ${rounds} times`);
  t.comment(JSON.stringify(Object.fromEntries(kinds)));
  for (const kind of ["grpc 0", "grpc 3", "grpc 5", "grpc 12"]) {
    t.ok(kinds.has(kind), `some were answered ${kind}`);
  }
  await unchanged(t, before);
});

/** The bytes that an HTTP/2 client sends for two calls, taken down by a server in between. */
async function recordedSession(): Promise<Buffer> {
  const { host, port } = parseAddress(agent.address, "address");
  const pieces: Buffer[] = [];
  const server = createServer((socket) => {
    const onward = connect({ host, port });
    socket.on("data", (piece: Buffer) => pieces.push(piece));
    socket.on("error", () => undefined);
    onward.on("error", () => undefined);
    socket.pipe(onward).pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  const session = connectHttp2(
    `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`,
  );
  const random: Random = { below: () => 0, oneIn: () => false, pick: (list) => list[0] as (typeof list)[number] };
  const outcome = await grpcCall(session, random);
  await new Promise<void>((resolve) => session.ping(() => resolve()));
  session.destroy();
  server.close();
  if (!outcome.startsWith("grpc 0")) {
    throw new Error(`the recorded call ended as ${outcome}`);
  }
  return Buffer.concat(pieces);
}

t.test(`HTTP/2: ${SESSIONS} changed sessions, seed ${SEED}`, { timeout: TIME_MS }, async (t) => {
  const random = createRandom(SEED + 2);
  const session = await recordedSession();
  const preface = session.subarray(0, 24);
  t.match(preface.toString("latin1"), /^PRI \* HTTP\/2\.0/);
  const { host, port } = parseAddress(agent.address, "address");
  const tokens = [
    "000000040000000000",
    "000004030000000001deadbeef",
    "00000806000000000000000000000000",
    "0000050200000000010000000010",
    "00000009040000000100",
    "000000010500000001",
    "000004080000000000ffffffff",
    "00000807000000000000000000000000ff",
  ].map((hex) => Buffer.from(hex.padEnd(hex.length + (hex.length % 2), "0"), "hex"));
  const send = async (count: number) => {
    for (let i = 0; i < count; i++) {
      const changed = mutateBytes(session.subarray(24), random, tokens);
      const bytes = random.oneIn(10) ? mutateBytes(session, random, tokens) : Buffer.concat([preface, changed]);
      await exchange(() => connect({ host, port }), bytes);
    }
  };
  await send(SESSIONS / 4);
  const before = { names: storeNames(), bytes: await heapBytes(agent.program) };
  const rounds = await besideOthers(Promise.all([send(SESSIONS / 3), send(SESSIONS / 3), send(SESSIONS / 3)]));
  t.ok(rounds > 0, `a client that behaves was served ${rounds} times`);
  await unchanged(t, before);
});

t.test("it is the same process, and ends when it is told", async (t) => {
  t.equal((await agent.client.status({})).moverRestarts, 0n);
  t.match(await (await fetch(`http://127.0.0.1:${agent.metricsPort}/healthz`)).text(), /\S/);
  t.equal(await agent.program.stop(), 0);
});
