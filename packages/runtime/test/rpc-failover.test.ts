import dns from "node:dns";
import { connect, createServer, type Server, type Socket } from "node:net";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@weightline/proto/grpc-health";
import { createGrpcChannel, createGrpcServer, createHealthStatus, fromRpcError } from "@weightline/runtime";
import t from "tap";

const health = createHealthStatus([]);
const server = await createGrpcServer({ routes: [health.route], bind: ["127.0.0.1"], port: 0, portFlag: "--port" });
t.teardown(() => server.stop(0));
const alive = { host: "127.0.0.1", port: server.port };

/** A listener of this test's own, which ends with it. */
async function listen(onConnection: (socket: Socket) => void, host = "127.0.0.1", port = 0) {
  const sockets = new Set<Socket>();
  const listener: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    onConnection(socket);
  });
  await new Promise<void>((resolve) => listener.listen(port, host, resolve));
  t.teardown(() => {
    for (const socket of sockets) {
      socket.destroy();
    }
    listener.close();
  });
  const bound = listener.address() as { port: number };
  return { address: { host, port: bound.port }, sockets };
}

/** Accepts, and never says a word: what a frozen program's kernel does. */
const mute = await listen(() => undefined);

function open(...addresses: Array<{ host: string; port: number }>) {
  const channel = createGrpcChannel({ addresses });
  t.teardown(() => channel.close());
  return channel.client(Health);
}

const codeOf = (error: unknown) => fromRpcError(error).code;

t.test(
  "the first entry accepts and is silent: the next answers in under a second, and is asked first after that",
  async (t) => {
    const before = mute.sockets.size;
    const client = open(mute.address, alive);
    t.equal((await client.check({}, { timeoutMs: 1000 })).status, Status.NOT_SERVING);
    t.ok(mute.sockets.size > before, "the silent one was tried");
    t.equal(
      (await client.check({}, { timeoutMs: 400 })).status,
      Status.NOT_SERVING,
      "sooner than the silent one gives up",
    );
  },
);

t.test("a stream goes to the next entry too", async (t) => {
  for (const first of [mute.address, { host: "127.0.0.1", port: 1 }]) {
    const controller = new AbortController();
    const stream = open(first, alive).watch({}, { signal: controller.signal })[Symbol.asyncIterator]();
    t.match(await stream.next(), { value: { status: Status.NOT_SERVING } });
    controller.abort();
    t.equal(await stream.next().then(() => "went on", codeOf), "Cancelled");
  }
});

t.test("nobody answers: Unavailable within the deadline, naming the last address", async (t) => {
  const client = open(mute.address, mute.address);
  await t.rejects(
    client.check({}, { timeoutMs: 5000 }).catch((error: unknown) => Promise.reject(fromRpcError(error))),
    { code: "Unavailable", message: new RegExp(`127.0.0.1:${mute.address.port} does not answer within 500 ms`) },
  );
  t.equal(
    await open(mute.address)
      .check({}, { timeoutMs: 300 })
      .then(() => "answered", codeOf),
    "DeadlineExceeded",
  );
  const cancelled = AbortSignal.abort();
  t.equal(await client.check({}, { signal: cancelled }).then(() => "answered", codeOf), "Cancelled");
});

t.test("no address at all is said at once", async (t) => {
  t.throws(() => createGrpcChannel({ addresses: [] }), { code: "InvalidArgument", message: /no address/ });
});

t.test("a connection whose other end froze is left, and a new one serves", { timeout: 60_000 }, async (t) => {
  let frozen = 0;
  let freezing = false;
  const upstreams: Socket[] = [];
  const proxy = await listen((socket) => {
    const upstream = connect(server.port, "127.0.0.1");
    upstreams.push(upstream);
    upstream.on("error", () => undefined);
    socket.on("data", (data) => {
      if (freezing) {
        frozen += data.length;
      } else {
        upstream.write(data);
      }
    });
    upstream.pipe(socket);
  });
  t.teardown(() => {
    for (const upstream of upstreams) {
      upstream.destroy();
    }
  });
  const client = open(proxy.address);
  t.equal((await client.check({})).status, Status.NOT_SERVING);
  const [first] = proxy.sockets;
  freezing = true;
  t.equal(await client.check({}, { timeoutMs: 200 }).then(() => "answered", codeOf), "DeadlineExceeded");
  t.ok(frozen > 0, "the call went into the frozen connection");
  // No call is open now: the pings between calls find it.
  await new Promise((resolve) => first?.once("close", resolve));
  freezing = false;
  t.equal((await client.check({})).status, Status.NOT_SERVING);
  t.ok(proxy.sockets.size >= 2);
});

t.test(
  "a name whose address froze before it was reached is resolved again, and its new address is found",
  async (t) => {
    const frozen = await listen(() => undefined, "127.0.0.2", server.port);
    let address = frozen.address.host;
    const { lookup } = dns.promises;
    dns.promises.lookup = (async () => [{ address, family: 4 }]) as never;
    t.teardown(() => {
      dns.promises.lookup = lookup;
    });
    const client = open({ host: "moves.weightline.test", port: server.port });
    const kept = client.check({}, { timeoutMs: 60_000 }).then(() => "answered", codeOf);
    t.equal(await client.check({}, { timeoutMs: 1200 }).then(() => "answered", codeOf), "DeadlineExceeded");
    t.ok(frozen.sockets.size > 0, "it was dialled");
    address = "127.0.0.1";
    const end = performance.now() + 20_000;
    let answer = "";
    while (answer !== "answered" && performance.now() < end) {
      answer = await client.check({}, { timeoutMs: 1200 }).then(() => "answered", codeOf);
    }
    t.equal(answer, "answered");
    t.equal(await Promise.race([kept, "waits"]), "waits", "a call that had time was not cut off");
    for (const socket of frozen.sockets) {
      socket.destroy();
    }
    t.equal(await kept, "Unavailable", "it ends with the connection that it waited for");
  },
);
