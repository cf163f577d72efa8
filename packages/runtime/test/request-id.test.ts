// A failed call can be found in the log by what its caller was told.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { HealthService } from "@weightline/proto/health";
import { AgentService } from "@weightline/proto/local";
import { NodeService } from "@weightline/proto/node";
import {
  BOUNDED_LINES_PER_SECOND,
  createBoundedLog,
  createFailureLog,
  createGrpcChannel,
  createGrpcServer,
  createLifecycle,
  createLocalClient,
  createLogger,
  fromRpcError,
  mountLocalRpc,
  route,
  toWeightlineError,
  WeightlineError,
} from "@weightline/runtime";
import fastify from "fastify";
import t from "tap";
import { runCommand } from "../../../test/support/program.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-request-`);
const file = `${folder}/log`;
const log = createLogger({ program: "p", level: "info", format: "json", file });
const lines = (): Array<Record<string, unknown>> =>
  readFileSync(file, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line));
const found = (request: string) => lines().filter((line) => line["request"] === request);

let failure: Error = new WeightlineError("Refused", "not today", { wayOut: "tomorrow" });
const refuse = () => {
  throw failure;
};
const routes = [
  route(HealthService, { getHealth: refuse }),
  route(NodeService, {
    // biome-ignore lint/correctness/useYield: it ends before its first item
    async *fillNodes() {
      refuse();
    },
  }),
  route(AgentService, {
    status: refuse,
    async *load() {
      yield { event: { case: "progress", value: { state: "loading" } } };
      refuse();
    },
  }),
];
const server = await createGrpcServer({
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
  routes,
  onFailure: createFailureLog(log),
});
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
const http = fastify();
mountLocalRpc(http, {
  routes,
  maxMessageBytes: 1000,
  shutdownSignal: new AbortController().signal,
  onFailure: createFailureLog(log),
});
await http.listen({ path: `${folder}/s` });
t.teardown(async () => {
  channel.close();
  await server.stop(0);
  await http.close();
  rmSync(folder, { recursive: true });
});

async function idOf(call: () => Promise<unknown>): Promise<WeightlineError> {
  try {
    await call();
  } catch (error) {
    return fromRpcError(error);
  }
  throw new Error("it did not fail");
}

const drain = async (stream: AsyncIterable<unknown>) => {
  for await (const _ of stream) {
    // Until it fails.
  }
};
const local = createLocalClient(AgentService, `${folder}/s`);
const calls: Array<[string, string, () => Promise<unknown>]> = [
  ["gRPC", "model_express.health.HealthService/GetHealth", () => channel.client(HealthService).getHealth({})],
  ["gRPC stream", "weightline.node.v1.NodeService/FillNodes", () => drain(channel.client(NodeService).fillNodes({}))],
  ["HTTP", "weightline.local.v1.AgentService/Status", () => local.status({})],
  ["HTTP stream", "weightline.local.v1.AgentService/Load", () => drain(local.load({}))],
];

t.test("what the caller got is one line of the log, over gRPC and HTTP, unary and stream", async (t) => {
  for (const [name, method, call] of calls) {
    const error = await idOf(call);
    t.match(error.requestId, /^[0-9a-f]{8}$/, name);
    t.match(found(error.requestId), [
      { event: "call-failed", method, code: "Refused", error: "not today", msg: "a call failed" },
    ]);
    t.equal(found(error.requestId).length, 1);
  }
});

t.test("a fault of the program: the caller has the id and no cause, the log has both", async (t) => {
  failure = new Error("the secret cause");
  for (const [name, , call] of calls) {
    const error = await idOf(call);
    t.equal(error.code, "Internal", name);
    t.match(error.message, `under request ${error.requestId}`);
    t.notMatch(error.message, "secret cause");
    t.match(found(error.requestId), [{ level: 50, code: "Internal", stack: /the secret cause[\s\S]*request-id.test/ }]);
  }
});

t.test("a request that no handler saw has an id too", async (t) => {
  for (const parameters of [
    ["-d", '{"no', "http://localhost/weightline.local.v1.AgentService/Status"],
    ["http://localhost/nowhere"],
  ]) {
    const done = await runCommand([
      "curl",
      "-sS",
      "-D",
      "-",
      "-H",
      "content-type: application/json",
      "--unix-socket",
      `${folder}/s`,
      ...parameters,
    ]);
    const id = /^weightline-request-id: ([0-9a-f]{8})/im.exec(done.stdout)?.[1] ?? "";
    for (let i = 0; i < 200 && found(id).length === 0; i++) {
      await sleep(10);
    }
    t.match(found(id), [{ event: "call-failed", method: /Status|nowhere/ }], done.stdout);
  }
});

t.test("a flood of refusals writes some lines a second, and how many it left out", async (t) => {
  const before = lines().length;
  const write = createBoundedLog(log);
  for (let i = 0; i < 1000; i++) {
    write("info", { event: "flood", i }, "no");
    write("info", { event: "other" }, "no");
    write("trace", { event: "silent" }, "below the level");
  }
  const flood = () =>
    lines()
      .slice(before)
      .filter(({ event }) => event === "flood");
  for (let i = 0; i < 500 && !flood().some((line) => "left_out" in line); i++) {
    await sleep(10);
  }
  t.equal(flood().length, BOUNDED_LINES_PER_SECOND + 1);
  t.match(flood().at(-1), { left_out: 1000 - BOUNDED_LINES_PER_SECOND });
  write("info", { event: "flood", i: 0 }, "no");
  t.match(flood().at(-1), { msg: "no" }, "the next second has room again");
});

t.test("a part that overruns its stop is named, and does not keep the others", async (t) => {
  const reports: Array<[string, string, string]> = [];
  const stopped: string[] = [];
  const life = createLifecycle((part, error) => {
    const { code, message } = toWeightlineError(error);
    reports.push([part, code, message]);
  });
  life.add({ name: "first", stop: () => void stopped.push("first") });
  life.add({ name: "stuck", stop: () => new Promise(() => undefined) });
  life.add({ name: "last", stop: () => void stopped.push("last") });
  await life.stop(5);
  t.same(stopped, ["last", "first"]);
  t.same(reports, [["stuck", "DeadlineExceeded", "it did not stop within 1005 ms, and is left behind"]]);
});
