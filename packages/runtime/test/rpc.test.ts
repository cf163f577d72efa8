import { mkdtempSync, rmSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@weightline/proto/grpc-health";
import { HealthService } from "@weightline/proto/health";
import {
  createGrpcChannel,
  createGrpcServer,
  createHealthStatus,
  createLocalClient,
  fromRpcError,
  mountLocalRpc,
  route,
  WeightlineError,
} from "@weightline/runtime";
import fastify from "fastify";
import t from "tap";

const refusal = new WeightlineError("ResourceExhausted", "the cup is full", {
  field: "cup",
  value: "2",
  limit: "1",
  wayOut: "drink",
  near: ["mug"],
});
const behaviours: Record<string, () => Promise<{ version: string; status: string }> | never> = {
  fine: async () => ({ version: "1", status: "ok" }),
  refuse: () => {
    throw refusal;
  },
  contract: () => {
    throw new ConnectError("as the contract words it", Code.OutOfRange);
  },
  broken: () => {
    throw new Error("a path /etc/secret in its words");
  },
  slow: () => sleep(60_000, { version: "", status: "" }, { ref: false }),
};
let behaviour = "fine";
const errors: unknown[] = [];
const calls: string[] = [];
let aborted = 0;

const health = createHealthStatus(["a.B"]);
const service = route(HealthService, {
  getHealth(_request, { signal }) {
    signal.addEventListener("abort", () => {
      aborted += 1;
    });
    return behaviours[behaviour]?.() ?? { version: "", status: "" };
  },
});
const start = (port = 0) =>
  createGrpcServer({
    routes: [service, health.route],
    bind: ["127.0.0.1"],
    port,
    portFlag: "--port",
    onCall: (name, method, code) => calls.push(`${name}/${method} ${code}`),
    onFailure: ({ code, error }) => code === "Internal" && errors.push(error),
  });

const server = await start();
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
t.teardown(async () => {
  channel.close();
  await server.stop(0);
});
const client = channel.client(HealthService);

async function failure(call: Promise<unknown>): Promise<WeightlineError> {
  try {
    await call;
  } catch (error) {
    return fromRpcError(error);
  }
  throw new Error("it did not fail");
}

t.test("an error's facts arrive whole over gRPC; unknown failures show nothing of themselves", async (t) => {
  behaviour = "refuse";
  t.match(await failure(client.getHealth({})), {
    code: "ResourceExhausted",
    message: "the cup is full",
    field: "cup",
    value: "2",
    limit: "1",
    wayOut: "drink",
    near: ["mug"],
  });
  behaviour = "contract";
  await t.rejects(client.getHealth({}), { code: Code.OutOfRange, rawMessage: "as the contract words it" });
  behaviour = "broken";
  const broken = await failure(client.getHealth({}));
  t.equal(broken.code, "Internal");
  t.notMatch(broken.message, /secret/);
  t.equal(errors.length, 1, "the log is told the cause");
  behaviour = "fine";
  t.match(await client.getHealth({}), { version: "1" });
  t.match(calls.slice(-2), [/internal$/, /ok$/]);
});

t.test("the same over HTTP/1.1 on a Unix socket", async (t) => {
  const folder = mkdtempSync(`${tmpdir()}/weightline-rpc-`);
  const http = fastify();
  mountLocalRpc(http, { routes: [service], maxMessageBytes: 1000, shutdownSignal: new AbortController().signal });
  await http.listen({ path: `${folder}/s` });
  t.teardown(async () => {
    await http.close();
    rmSync(folder, { recursive: true });
  });
  const local = createLocalClient(HealthService, `${folder}/s`);
  t.match(await local.getHealth({}), { version: "1" });
  behaviour = "refuse";
  t.match(await failure(local.getHealth({})), { code: "ResourceExhausted", field: "cup", near: ["mug"] });
  behaviour = "fine";
});

t.test("deadlines and cancellation end a call, and the handler hears of it", async (t) => {
  behaviour = "slow";
  const before = aborted;
  t.equal((await failure(client.getHealth({}, { timeoutMs: 100 }))).code, "DeadlineExceeded");
  const controller = new AbortController();
  const call = failure(client.getHealth({}, { signal: controller.signal }));
  await sleep(50);
  controller.abort();
  t.equal((await call).code, "Cancelled");
  await sleep(100);
  t.ok(aborted >= before + 2);
  behaviour = "fine";
});

t.test("the first entry of a list is dead: the next answers in under a second", async (t) => {
  const list = createGrpcChannel({
    addresses: [
      { host: "127.0.0.1", port: 1 },
      { host: "127.0.0.1", port: server.port },
    ],
  });
  t.teardown(() => list.close());
  t.match(await list.client(HealthService).getHealth({}, { timeoutMs: 900 }), { version: "1" });
  const none = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: 1 }] });
  t.teardown(() => none.close());
  t.match(await failure(none.client(HealthService).getHealth({})), {
    code: "Unavailable",
    message: /cannot be reached/,
  });
});

t.test("health: names, changes, and what is not known", async (t) => {
  const probe = channel.client(Health);
  t.equal((await probe.check({})).status, Status.NOT_SERVING);
  health.set(true);
  t.equal((await probe.check({ service: "a.B" })).status, Status.SERVING);
  t.equal((await failure(probe.check({ service: "x" }))).code, "NotFound");
  const seen: number[] = [];
  const controller = new AbortController();
  try {
    for await (const { status } of probe.watch({ service: "a.B" }, { signal: controller.signal })) {
      seen.push(status);
      if (seen.length === 1) {
        health.set(false);
      } else {
        controller.abort();
      }
    }
  } catch {
    // The cancellation itself.
  }
  t.same(seen, [Status.SERVING, Status.NOT_SERVING]);
  health.set(true, "a.B");
  t.equal((await probe.check({ service: "a.B" })).status, Status.SERVING, "one name by itself");
  t.equal((await probe.check({})).status, Status.NOT_SERVING);
  const stranger = probe.watch({ service: "x" }, { timeoutMs: 5000 })[Symbol.asyncIterator]();
  t.match(await stranger.next(), { value: { status: Status.SERVICE_UNKNOWN } });
  health.set(true, "a.B");
  health.set(true, "x");
  t.match(await stranger.next(), { value: { status: Status.SERVING } }, "told of its own changes alone");
});

t.test("pings without a call are answered, every one, without GOAWAY", async (t) => {
  const session = connectHttp2(`http://127.0.0.1:${server.port}`);
  let goaway = 0;
  session.on("goaway", () => {
    goaway += 1;
  });
  await new Promise((resolve) => session.once("connect", resolve));
  for (let i = 0; i < 40; i++) {
    await new Promise<void>((resolve, reject) => session.ping((error) => (error === null ? resolve() : reject(error))));
  }
  t.equal(goaway, 0);
  session.close();
});

t.test("a port that is taken; a stop that an open stream does not hold up", async (t) => {
  await t.rejects(start(server.port), {
    code: "InUse",
    field: "--port",
    message: new RegExp(`port ${server.port} \\(--port\\).*another program has it`),
  });
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  other.close();
  const second = await start();
  const watching = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: second.port }] });
  t.teardown(() => watching.close());
  const stream = watching.client(Health).watch({})[Symbol.asyncIterator]();
  await stream.next();
  const stopped = await Promise.race([second.stop(5000).then(() => "stopped"), sleep(3000, "held up")]);
  t.equal(stopped, "stopped");
  await stream.next().catch(() => undefined);
});
