// The local API's own serving of Connect over HTTP/1.1: what a request may be, how it ends, and that it leaves nothing.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { request as httpRequest, type IncomingHttpHeaders } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { createContextKey, createContextValues, type HandlerContext } from "@connectrpc/connect";
import { AgentService, TransfersRequestSchema } from "@weightline/proto/local";
import { createLocalClient, fromRpcError, mountLocalRpc, route, WeightlineError } from "@weightline/runtime";
import fastify from "fastify";
import t from "tap";

const MESSAGE_MAX_BYTES = 1000;
const CALLS = 2000;
/** Connect's own handlers leave three kilobytes of a call with one answer. */
const KEPT_MAX_BYTES = 500;
const folder = mkdtempSync(`${tmpdir()}/weightline-local-`);
const path = `${folder}/s`;
const stopping = new AbortController();
const agentKey = createContextKey("", { description: "the request's user agent" });

/** What the handlers saw of their calls. */
let seen: { context: HandlerContext; last: number } | undefined;
let left = 0;
let items = 0;
const failures: string[] = [];

const http = fastify();
mountLocalRpc(http, {
  routes: [
    route(AgentService, {
      status: () => ({ node: "n" }),
      transfers({ last }, context) {
        seen = { context, last };
        return {};
      },
      evict: async (_request, { signal }) => {
        if (!signal.aborted) {
          await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
        }
        throw signal.reason;
      },
      async *load({ path: kind }, { signal }) {
        try {
          for (; kind === "endless" || items < 3; items++) {
            yield { event: { case: "progress", value: { state: "x".repeat(kind === "endless" ? 10_000 : 1) } } };
          }
          if (kind === "refused") {
            throw new WeightlineError("Refused", "no more", { field: "path" });
          }
          if (kind === "waits") {
            await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
          }
        } finally {
          left += 1;
        }
      },
    }),
  ],
  maxMessageBytes: MESSAGE_MAX_BYTES,
  shutdownSignal: stopping.signal,
  contextValues: ({ headers }) => createContextValues().set(agentKey, headers["user-agent"] ?? ""),
  onFailure: ({ code, error }) => failures.push(`${code} ${error instanceof Error ? error.message : error}`),
});
await http.listen({ path });
t.teardown(async () => {
  await http.close();
  rmSync(folder, { recursive: true });
});
const client = createLocalClient(AgentService, path);

interface Reply {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
}

/** One HTTP request of a method; `body` as it is. */
function ask(
  method: string,
  body: Buffer | string,
  headers: Record<string, string> = {},
  verb = "POST",
  socketPath = path,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const sent = httpRequest(
      {
        socketPath,
        path: `/weightline.local.v1.AgentService/${method}`,
        method: verb,
        headers: { "content-type": "application/json", ...headers },
      },
      (answer) => {
        const pieces: Buffer[] = [];
        answer.on("data", (piece) => pieces.push(piece));
        answer.on("end", () =>
          resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: Buffer.concat(pieces) }),
        );
      },
    );
    sent.on("error", reject);
    sent.end(body);
  });
}

const STREAM = { "content-type": "application/connect+json" };
const envelope = (text: string, flags = 0, bytes = text.length) => {
  const head = Buffer.alloc(5);
  head.writeUInt8(flags);
  head.writeUInt32BE(bytes, 1);
  return Buffer.concat([head, Buffer.from(text)]);
};

/** A stream's messages, and what it ended with. */
function opened(body: Buffer): { flags: number; json: Record<string, unknown> }[] {
  const all: { flags: number; json: Record<string, unknown> }[] = [];
  for (let at = 0; at < body.length; ) {
    const bytes = body.readUInt32BE(at + 1);
    all.push({ flags: body.readUInt8(at), json: JSON.parse(body.toString("utf8", at + 5, at + 5 + bytes)) });
    at += 5 + bytes;
  }
  return all;
}

t.test("JSON and binary, with and without a charset, fields that are not known", async (t) => {
  for (const type of ["application/json", "application/json; charset=utf-8", "Application/JSON"]) {
    const reply = await ask("Status", '{"fromTheFuture": 1}', { "content-type": type });
    t.match(reply, { status: 200, headers: { "content-type": "application/json" } }, type);
    t.match(JSON.parse(reply.body.toString()), { node: "n" });
    t.match(reply.headers["weightline-request-id"], /^[0-9a-f]{8}$/);
    t.equal(reply.headers["content-length"], String(reply.body.length));
  }
  const binary = toBinary(TransfersRequestSchema, create(TransfersRequestSchema, { last: 7 }));
  const reply = await ask("Transfers", Buffer.from(binary), {
    "content-type": "application/proto",
    "user-agent": "a test",
    "x-twice": "1",
  });
  t.match(reply, { status: 200, headers: { "content-type": "application/proto" } });
  t.equal(seen?.last, 7);
  const { context } = seen ?? {};
  t.equal(context?.values.get(agentKey), "a test");
  t.equal(context?.requestHeader.get("x-twice"), "1");
  t.equal(context?.method.name, "Transfers");
  t.equal(context?.timeoutMs(), undefined);
  t.ok(context?.signal.aborted, "who works on after the answer is told");
});

t.test("a stream: its messages and its end, from one write to another", async (t) => {
  items = 0;
  const { status, headers, body } = await ask("Load", envelope("{}"), STREAM);
  t.match({ status, type: headers["content-type"] }, { status: 200, type: "application/connect+json" });
  t.match(opened(body), [
    { flags: 0, json: { progress: { state: "x" } } },
    { flags: 0, json: { progress: { state: "x" } } },
    { flags: 0, json: { progress: { state: "x" } } },
    { flags: 2, json: {} },
  ]);
  items = 0;
  const refused = opened((await ask("Load", envelope('{"path":"refused"}'), STREAM)).body);
  t.equal(refused.length, 4);
  t.match(refused.at(-1), { flags: 2, json: { error: { code: "failed_precondition", message: "no more" } } });
  items = 3;
  const early = await ask("Load", envelope('{"path":"refused"}'), STREAM);
  t.match(early, { status: 200 }, "before its first message as well");
  t.match(opened(early.body), [{ flags: 2, json: { error: { message: "no more" } } }]);
});

t.test("what is no request of the method", async (t) => {
  t.match(await ask("Status", "", {}, "GET"), { status: 405, headers: { allow: "POST" } });
  t.match(await ask("Status", "{}", { "content-type": "text/plain" }), { status: 415 });
  t.match(await ask("Status", envelope("{}"), STREAM), { status: 415 }, "a stream's form of a call with one answer");
  t.match(await ask("Load", "{}"), { status: 415 });
  t.match(await ask("Nothing", "{}"), { status: 404 });
  failures.length = 0;
  const unary: ReadonlyArray<readonly [string, Buffer | string, Record<string, string>, RegExp]> = [
    ["no JSON", "{", {}, /not a weightline.local.v1.StatusRequest/],
    ["empty", "", {}, /not a weightline.local.v1.StatusRequest/],
    ["not binary", "\xff\xff", { "content-type": "application/proto" }, /not a weightline.local.v1.StatusRequest/],
    ["a timeout that is none", "{}", { "connect-timeout-ms": "soon" }, /timeout/],
  ];
  for (const [name, body, headers, message] of unary) {
    const reply = await ask("Status", body, headers);
    t.match(reply, { status: 400 }, name);
    t.match(JSON.parse(reply.body.toString()), { code: "invalid_argument", message }, name);
  }
  const coded = await ask("Status", gzipSync("{}"), { "content-encoding": "gzip" });
  t.match(JSON.parse(coded.body.toString()), { code: "unimplemented", message: /content-encoding gzip/ });
  const streams: ReadonlyArray<readonly [string, Buffer, Record<string, string>, string, RegExp]> = [
    ["nothing", Buffer.alloc(0), {}, "invalid_argument", /0 bytes are no enveloped message/],
    ["cut off", envelope("{}", 0, 3), {}, "invalid_argument", /tells of 3 bytes, and 2 follow/],
    ["two", Buffer.concat([envelope("{}"), envelope("{}")]), {}, "invalid_argument", /tells of 2 bytes, and 9 follow/],
    ["compressed", envelope("{}", 1), {}, "invalid_argument", /flags 1/],
    ["an encoding", envelope("{}"), { "connect-content-encoding": "gzip" }, "unimplemented", /encoding gzip/],
  ];
  for (const [name, body, headers, code, message] of streams) {
    const reply = await ask("Load", body, { ...STREAM, ...headers });
    t.match(reply, { status: 200 }, name);
    t.match(opened(reply.body), [{ flags: 2, json: { error: { code, message } } }], name);
  }
  t.equal(failures.length, unary.length + 1 + streams.length, "each is told once");
});

t.test("a message at the limit is taken, one above is refused, announced or not", async (t) => {
  const filled = (bytes: number) => '{"x":""}'.replace('""', `"${"a".repeat(bytes - 8)}"`);
  t.equal((await ask("Status", filled(MESSAGE_MAX_BYTES))).status, 200);
  t.equal((await ask("Load", envelope(filled(MESSAGE_MAX_BYTES)), STREAM)).status, 200);
  for (const headers of [{}, { "transfer-encoding": "chunked" }]) {
    const reply = await ask("Status", filled(MESSAGE_MAX_BYTES + 1), headers);
    t.equal(reply.status, 429);
    t.match(JSON.parse(reply.body.toString()), { code: "resource_exhausted", message: /more than 1000 bytes/ });
    const stream = await ask("Load", envelope(filled(MESSAGE_MAX_BYTES + 1)), { ...STREAM, ...headers });
    t.match(opened(stream.body), [{ json: { error: { code: "resource_exhausted" } } }]);
  }
});

t.test("a deadline ends a call, one that no timer takes does not", async (t) => {
  await t.rejects(client.evict({}, { timeoutMs: 50 }), /timed out|deadline/);
  const late = await ask("Evict", "{}", { "connect-timeout-ms": "20" });
  t.match(JSON.parse(late.body.toString()), { code: "deadline_exceeded" });
  const patient = await ask("Transfers", "{}", { "connect-timeout-ms": "9999999999" });
  t.equal(patient.status, 200);
  t.ok((seen?.context.timeoutMs() ?? 0) > 9_999_000_000);
});

t.test("who leaves ends its call, wherever it was; the others go on", async (t) => {
  const leave = async (bytes: Buffer | string, headers: Record<string, string>, method: string) => {
    const socket = connect(path);
    const lines = Object.entries({ host: "localhost", ...headers }).map(([name, value]) => `${name}: ${value}\r\n`);
    socket.write(`POST /weightline.local.v1.AgentService/${method} HTTP/1.1\r\n${lines.join("")}\r\n`);
    socket.write(bytes);
    await sleep(100);
    socket.destroy();
  };
  const until = async (what: () => boolean) => {
    for (let i = 0; i < 300 && !what(); i++) {
      await sleep(10);
    }
    return what();
  };
  failures.length = 0;
  await leave("{", { "content-type": "application/json", "content-length": "100" }, "Status");
  t.ok(await until(() => failures.length === 1), "in the middle of its request");
  t.match(failures.splice(0), [/^Cancelled .*left in the middle/]);
  await leave("{}", { "content-type": "application/json", "content-length": "2" }, "Evict");
  t.ok(await until(() => failures.length === 1), "while it waits for its answer");
  t.match(failures.splice(0), [/^Cancelled /]);
  left = 0;
  items = 3;
  const waits = envelope('{"path":"waits"}');
  await leave(waits, { ...STREAM, "content-length": String(waits.length) }, "Load");
  t.ok(await until(() => left === 1), "while a stream waits");
  items = 0;
  const endless = envelope('{"path":"endless"}');
  await leave(endless, { ...STREAM, "content-length": String(endless.length) }, "Load");
  t.ok(await until(() => left === 2), "while a stream waits for its reader");
  t.ok(items < 1000, `${items} messages of 10 kB were made for one who reads nothing`);
  left = 0;
  items = 0;
  const head = `POST /weightline.local.v1.AgentService/Load HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/connect+json\r\ncontent-length: ${endless.length}\r\n\r\n`;
  const behind = Buffer.concat([endless, Buffer.from(head), endless]);
  await leave(behind, { ...STREAM, "content-length": String(endless.length) }, "Load");
  t.ok(await until(() => left === 2), "and while it waits behind another of its connection");
  t.match(await client.status({}), { node: "n" });
});

t.test("the stop ends calls that wait, with its reason", async (t) => {
  items = 3;
  const waiting = (async () => {
    for await (const _ of client.load({ path: "waits" })) {
      // Until it ends.
    }
  })().catch(fromRpcError);
  const evict = client.evict({}).catch(fromRpcError);
  await sleep(100);
  stopping.abort(new WeightlineError("Unavailable", "it stops"));
  for (const error of [await waiting, await evict]) {
    t.match(error, { code: "Unavailable", message: "it stops" });
  }
  t.match(await client.evict({}).catch(fromRpcError), { code: "Unavailable" }, "and those that come after it");
});

/** Serves calls, collects young objects alone meanwhile, and tells how many bytes are in use when it is asked. */
const SERVER = `
import { AgentService } from "@weightline/proto/local";
import { mountLocalRpc, route } from "@weightline/runtime";
import fastify from "fastify";
const http = fastify();
mountLocalRpc(http, {
  routes: [route(AgentService, {
    status: (_request, context) => (context.signal.aborted ? {} : { node: "n" }),
    async *load() { yield { event: { case: "progress", value: {} } }; },
  })],
  maxMessageBytes: 1000,
  shutdownSignal: new AbortController().signal,
});
await http.listen({ path: ${JSON.stringify(`${folder}/other`)} });
setInterval(() => globalThis.gc({ type: "minor" }), 5);
process.on("message", (collect) => {
  globalThis.gc(collect === "all" ? {} : { type: "minor" });
  process.send(process.memoryUsage().heapUsed);
});
process.send("ready");
`;

t.test("calls leave nothing that only a full collection finds", async (t) => {
  // So much memory at the start that no full collection comes by itself.
  const flags = ["--expose-gc", "--single-threaded-gc", "--initial-old-space-size=512"];
  const server = spawn(
    process.execPath,
    [...flags, "--disable-warning=ExperimentalWarning", "--input-type=module", "-e", SERVER],
    { cwd: import.meta.dirname, stdio: ["ignore", "inherit", "inherit", "ipc"] },
  );
  t.teardown(() => server.kill("SIGKILL"));
  await once(server, "message");
  const bytes = async (collect: "all" | "young") => {
    server.send(collect);
    const [answer] = await once(server, "message");
    return Number(answer);
  };
  const calls = async (count: number, method: string, body: Buffer | string, headers: Record<string, string>) => {
    for (let i = 0; i < count; i++) {
      await ask(method, body, headers, "POST", `${folder}/other`);
    }
  };
  for (const [method, body, headers] of [
    ["Status", "{}", {}],
    ["Load", envelope("{}"), STREAM],
  ] as const) {
    // The code is compiled first.
    await calls(1500, method, body, headers);
    const before = await bytes("all");
    await calls(CALLS, method, body, headers);
    const kept = ((await bytes("young")) - before) / CALLS;
    t.ok(kept < KEPT_MAX_BYTES, `${method}: ${Math.round(kept)} bytes of each call stay`);
  }
});
