// Field case 31: clients that ping by themselves, without a call, more often than other servers allow.
import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { createGrpcServer, createHealthStatus } from "@weightline/runtime";
import t from "tap";
import { createPingCounter } from "../../../test/support/ping-counter.ts";

const PINGS_MIN = 100;
const PING_EVERY_MS = 10;

t.test("a grpc-js client with keepalive_permit_without_calls keeps its one connection", async (t) => {
  const health = createHealthStatus([]);
  const server = await createGrpcServer({ routes: [health.route], bind: ["127.0.0.1"], port: 0, portFlag: "--port" });
  const counter = await createPingCounter(server.port);
  const client = new grpc.Client(`127.0.0.1:${counter.port}`, grpc.credentials.createInsecure(), {
    "grpc.keepalive_time_ms": PING_EVERY_MS,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
  });
  t.teardown(async () => {
    client.close();
    counter.close();
    await server.stop(0);
  });
  const check = () =>
    new Promise<void>((resolve, reject) =>
      client.makeUnaryRequest(
        "/grpc.health.v1.Health/Check",
        () => Buffer.alloc(0),
        (reply) => reply,
        null,
        (error) => (error === null ? resolve() : reject(error)),
      ),
    );
  await check();
  const end = performance.now() + 60_000;
  while (counter.answered() < PINGS_MIN && performance.now() < end) {
    await sleep(PING_EVERY_MS);
  }
  t.ok(counter.answered() >= PINGS_MIN, `${counter.sent()} pings, ${counter.answered()} answered`);
  await check();
  t.equal(counter.goaways(), 0);
  t.equal(counter.connections(), 1, "no second connection was needed");
});
