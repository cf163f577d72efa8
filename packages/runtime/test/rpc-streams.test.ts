// All four kinds of methods, called by grpc-js and by ours. The contract has no method that takes a stream; these kinds are made of Health's messages.
import { EventEmitter, once } from "node:events";
import { createServer } from "node:net";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { Health, HealthCheckRequestSchema, HealthCheckResponseSchema } from "@weightline/proto/grpc-health";
import { createGrpcChannel, createGrpcServer, type GrpcServerOptions, type ServiceRoute } from "@weightline/runtime";
import t, { type Test } from "tap";
import { until } from "../../../test/support/processes.ts";
import { COMPRESSED_MESSAGE_MAX_BYTES } from "../src/rpc/server-limits.ts";

type Request = { service: string };
type Context = { signal: AbortSignal };

const service = { ...Health, typeName: "test.Kinds", methods: [] as DescMethod[] };
for (const [name, methodKind] of [
  ["Count", "client_streaming"],
  ["Echo", "bidi_streaming"],
  ["Repeat", "server_streaming"],
  ["Once", "unary"],
] as const) {
  const localName = name.toLowerCase();
  service.methods.push({
    ...Health.method.check,
    name,
    localName,
    methodKind,
    parent: service,
  } as unknown as DescMethod);
}

let ended: unknown;
/** The call of Once that waits for its answer. */
let waiting: { signal: AbortSignal; answer: () => void } | undefined;
const asked = new EventEmitter();
const implementation = {
  once(_: Request, { signal }: Context) {
    return new Promise<{ status: number }>((resolve) => {
      waiting = { signal, answer: () => resolve({ status: 7 }) };
      asked.emit("asked");
    });
  },
  async count(requests: AsyncIterable<Request>) {
    let status = 0;
    for await (const _ of requests) {
      status += 1;
    }
    return { status };
  },
  async *echo(requests: AsyncIterable<Request>, { signal }: Context) {
    try {
      for await (const { service } of requests) {
        if (service === "wait") {
          await new Promise((resolve) => signal.addEventListener("abort", resolve));
        }
        yield { status: service.length };
      }
      ended = "whole";
    } catch (error) {
      ended = error;
      throw error;
    }
  },
  async *repeat({ service }: Request, { signal }: Context) {
    for (let i = 0; i < Number(service); i++) {
      yield { status: i };
    }
    if (service === "3") {
      await new Promise((resolve) => signal.addEventListener("abort", resolve));
      yield { status: 99 };
    }
  },
};

const start = (limits: GrpcServerOptions["limits"] = {}) =>
  createGrpcServer({
    limits,
    routes: [{ service: service as unknown as DescService, implementation } as unknown as ServiceRoute],
    bind: ["127.0.0.1"],
    port: 0,
    portFlag: "--port",
  });
const server = await start();
const raw = new grpc.Client(`127.0.0.1:${server.port}`, grpc.credentials.createInsecure());
t.teardown(async () => {
  raw.close();
  await server.stop(0);
});

const encode = (text: string) =>
  Buffer.from(toBinary(HealthCheckRequestSchema, create(HealthCheckRequestSchema, { service: text })));
const decode = (bytes: Buffer) => Number(fromBinary(HealthCheckResponseSchema, bytes).status);

t.test("client streaming: every message is taken, then one reply", async (t) => {
  const total = await new Promise<number | undefined>((resolve, reject) => {
    const call = raw.makeClientStreamRequest("/test.Kinds/Count", encode, decode, (error, reply) =>
      error === null ? resolve(reply) : reject(error),
    );
    for (let i = 0; i < 1000; i++) {
      call.write(String(i));
    }
    call.end();
  });
  t.equal(total, 1000);
});

t.test("both sides stream: replies come as requests go, and the caller's end ends it", async (t) => {
  const call = raw.makeBidiStreamRequest("/test.Kinds/Echo", encode, decode);
  const replies = call[Symbol.asyncIterator]();
  for (const text of ["a", "bbb", "cc"]) {
    call.write(text);
    t.equal((await replies.next()).value, text.length);
  }
  call.end();
  t.equal((await replies.next()).done, true);
  t.equal(ended, "whole");
});

t.test("a caller that goes away ends the handler's loop, and never as if it had said all", async (t) => {
  for (let round = 0; round < 20; round++) {
    ended = undefined;
    const call = raw.makeBidiStreamRequest("/test.Kinds/Echo", encode, decode);
    call.on("error", () => undefined);
    call.write("a");
    await new Promise((resolve) => call.once("data", resolve));
    call.cancel();
    while (ended === undefined) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    t.match(ended, { name: "AbortError" });
  }
});

t.test("a stop ends open streams of both kinds with Unavailable, not as if they were whole", async (t) => {
  const second = await start();
  const client = new grpc.Client(`127.0.0.1:${second.port}`, grpc.credentials.createInsecure());
  t.teardown(() => client.close());
  const repeat = client.makeServerStreamRequest("/test.Kinds/Repeat", encode, decode, "3");
  const echo = client.makeBidiStreamRequest("/test.Kinds/Echo", encode, decode);
  echo.write("a");
  const seen: number[] = [];
  const ends = [repeat, echo].map(
    (call) => new Promise<number>((resolve) => call.once("error", (error: grpc.ServiceError) => resolve(error.code))),
  );
  await Promise.all([
    new Promise<void>((resolve) =>
      repeat.on("data", (item: number) => {
        seen.push(item);
        if (seen.length === 3) {
          resolve();
        }
      }),
    ),
    new Promise((resolve) => echo.once("data", resolve)),
  ]);
  await second.stop(10_000);
  t.same(await Promise.all(ends), [grpc.status.UNAVAILABLE, grpc.status.UNAVAILABLE]);
  t.same(seen, [0, 1, 2], "nothing is sent after the stop");
});

t.test("a stop lets what has one answer give it, and cuts it at the end of its grace", async (t) => {
  for (const inTime of [true, false]) {
    const second = await start();
    const client = new grpc.Client(`127.0.0.1:${second.port}`, grpc.credentials.createInsecure());
    t.teardown(() => client.close());
    const arrived = once(asked, "asked");
    const reply = new Promise<unknown>((resolve) => {
      client.makeUnaryRequest("/test.Kinds/Once", encode, decode, "x", (error, status) => resolve(error ?? status));
    });
    await arrived;
    const stopped = second.stop(inTime ? 60_000 : 50);
    t.equal(waiting?.signal.aborted, false, "the stop is no reason to give up");
    if (inTime) {
      waiting?.answer();
      t.equal(await reply, 7);
    } else {
      t.match(await reply, { code: grpc.status.UNAVAILABLE });
      t.equal(waiting?.signal.aborted, true, "its handler hears of the cut");
    }
    await stopped;
  }
});

t.test("a slow reader: all of a long stream arrives in order", async (t) => {
  const call = raw.makeServerStreamRequest("/test.Kinds/Repeat", encode, decode, "20000");
  let next = 0;
  for await (const item of call) {
    if (item !== next) {
      t.fail(`${item} came in place of ${next}`);
    }
    next += 1;
    if (next % 5000 === 0) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
  t.equal(next, 20_000);
});

type Kinds = {
  count(input: AsyncIterable<Request>): Promise<unknown>;
  echo(input: AsyncIterable<Request>, options?: { signal: AbortSignal }): AsyncIterable<{ status: number }>;
};
function ours(t: Test, ...ports: number[]): Kinds {
  const channel = createGrpcChannel({ addresses: ports.map((port) => ({ host: "127.0.0.1", port })) });
  t.teardown(() => channel.close());
  return channel.client(service as unknown as DescService) as unknown as Kinds;
}

t.test("our client streams both ways: what it sends goes out at once, and its end is the server's", async (t) => {
  ended = undefined;
  const replied = new EventEmitter();
  async function* lockstep() {
    for (const text of ["a", "bbb", "cc"]) {
      yield { service: text };
      await once(replied, "reply");
    }
  }
  const seen: number[] = [];
  for await (const { status } of ours(t, server.port).echo(lockstep())) {
    seen.push(status);
    replied.emit("reply");
  }
  t.same(seen, [1, 3, 2]);
  t.equal(ended, "whole");
});

t.test("many messages at once: all arrive in order", async (t) => {
  async function* numbered() {
    for (let i = 0; i < 5000; i++) {
      yield { service: "x".repeat(i % 100) };
    }
  }
  let next = 0;
  for await (const { status } of ours(t, server.port).echo(numbered())) {
    if (status !== next % 100) {
      t.fail(`${status} came in place of ${next % 100}`);
    }
    next += 1;
  }
  t.equal(next, 5000);
});

t.test("what a stream said before its first reply goes to the next address too", async (t) => {
  const dead = createServer();
  await new Promise<void>((resolve) => dead.listen(0, "127.0.0.1", resolve));
  const { port } = dead.address() as { port: number };
  await new Promise((resolve) => dead.close(resolve));
  async function* three() {
    yield* [{ service: "a" }, { service: "bb" }, { service: "ccc" }];
  }
  const seen: number[] = [];
  for await (const { status } of ours(t, port, server.port).echo(three())) {
    seen.push(status);
  }
  t.same(seen, [1, 2, 3]);
});

t.test("half a stream never looks whole, and who gives one up gets its own reason back", async (t) => {
  ended = undefined;
  const replied = new EventEmitter();
  async function* broken() {
    yield { service: "a" };
    await once(replied, "reply");
    throw new Error("there is no more");
  }
  const all = async (stream: AsyncIterable<unknown>) => {
    for await (const _ of stream) {
      replied.emit("reply");
    }
  };
  await t.rejects(all(ours(t, server.port).echo(broken())), { code: Code.Canceled });
  await until("the server's end", () => ended !== undefined);
  t.match(ended, { name: "AbortError" });

  const given = new AbortController();
  async function* open() {
    yield { service: "a" };
    given.abort(new ConnectError("tired of it", Code.DeadlineExceeded));
    await new Promise(() => undefined);
  }
  await t.rejects(all(ours(t, server.port).echo(open(), { signal: given.signal })), {
    code: Code.DeadlineExceeded,
    rawMessage: "tired of it",
  });
});

t.test("a stream's bytes count until its handler has them: it may go on for ever, and may not flood", async (t) => {
  const limit = 256 * 1024;
  const limited = await start({ bytesPerAddress: limit });
  t.teardown(() => limited.stop(0));
  const text = "x".repeat(10_000);
  const replied = new EventEmitter();
  async function* lockstep() {
    for (let i = 0; i < 100; i++) {
      yield { service: text };
      await once(replied, "reply");
    }
  }
  let count = 0;
  for await (const _ of ours(t, limited.port).echo(lockstep())) {
    count += 1;
    replied.emit("reply");
  }
  t.equal(count, 100, `${count * text.length} bytes in all, of ${limit}`);

  const taken = new Map<number, number>();
  async function* flood(number: number) {
    yield { service: "wait" };
    for (;;) {
      taken.set(number, (taken.get(number) ?? 0) + 1);
      yield { service: text };
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  // One that is not read waits by the window of its stream; many of them are too many.
  const patient = new AbortController();
  const one = ours(t, limited.port).echo(flood(0), { signal: patient.signal })[Symbol.asyncIterator]();
  const first = one.next();
  first.catch(() => undefined);
  await until("its client to wait", async () => {
    const before = taken.get(0);
    await new Promise((resolve) => setTimeout(resolve, 100));
    return before !== undefined && before > 5 && before === taken.get(0);
  });
  const others = Array.from({ length: 5 }, (_, i) =>
    ours(t, limited.port)
      .echo(flood(i + 1))
      [Symbol.asyncIterator]()
      .next(),
  );
  const refusal = await Promise.any(
    others.map((other) =>
      other.then(
        () => undefined,
        (error: unknown) => error,
      ),
    ),
  );
  t.match(refusal, { code: Code.ResourceExhausted });
  patient.abort();
});

t.test("what compressed messages may become counts for as long as their stream is open", async (t) => {
  const limited = await start({ bytesPerAddress: COMPRESSED_MESSAGE_MAX_BYTES + 1024 * 1024 });
  const packing = new grpc.Client(`127.0.0.1:${limited.port}`, grpc.credentials.createInsecure(), {
    "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip,
  });
  t.teardown(async () => {
    packing.close();
    await limited.stop(0);
  });
  const first = packing.makeBidiStreamRequest("/test.Kinds/Echo", encode, decode);
  first.write("x".repeat(1000));
  t.equal((await once(first, "data"))[0], 1000);
  const second = packing.makeBidiStreamRequest("/test.Kinds/Echo", encode, decode);
  second.write("x".repeat(1000));
  await t.rejects(once(second, "data"), { code: grpc.status.RESOURCE_EXHAUSTED });
  first.end();
  await once(first, "end");
});

t.test("our client says so when a method has one reply to a stream", async (t) => {
  async function* none() {}
  await t.rejects(ours(t, server.port).count(none()), { message: /Count has one reply to a stream/ });
});
