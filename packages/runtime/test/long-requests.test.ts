// Requests that are decoded in steps: others are served in between, and few are in memory as messages.
import { Health, HealthCheckResponse_ServingStatus as Status } from "@weightline/proto/grpc-health";
import { NodeService } from "@weightline/proto/node";
import { createGrpcChannel, createGrpcServer, createHealthStatus, route } from "@weightline/runtime";
import t from "tap";

const HOLDINGS = 40_000;
const CALLS = 6;
/** Between two that are decoded one after another; each has dozens of steps. */
const TURNS_LEAST = 5;

/** Turns of the event loop so far, while `isCounting`. */
let turns = 0;
let isCounting = true;
function countTurns(): void {
  turns += 1;
  if (isCounting) {
    setImmediate(countTurns);
  }
}

const startedAt: number[] = [];
const codes: string[] = [];
const server = await createGrpcServer({
  routes: [
    createHealthStatus([]).route,
    route(NodeService, {
      announce(request) {
        startedAt.push(turns);
        if (request.holdings?.holdings.length !== HOLDINGS) {
          throw new Error("not what was sent");
        }
        return {};
      },
    }),
  ],
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
  onCall: (_, method, code) => method === "Announce" && codes.push(code),
});
t.teardown(async () => {
  isCounting = false;
  await server.stop(0);
});

const long = { holdings: { holdings: Array.from({ length: HOLDINGS }, () => ({})) } };

function open() {
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
  t.teardown(() => channel.close());
  return channel;
}

t.test("those of one peer are decoded one after another, others' calls in between", async (t) => {
  countTurns();
  const channel = open();
  const announces = Array.from({ length: CALLS }, () => channel.client(NodeService).announce(long));
  let areDone = false;
  const all = Promise.all(announces).then(() => {
    areDone = true;
  });
  let answered = 0;
  for (const health = open().client(Health); !areDone; answered++) {
    t.equal((await health.check({})).status, Status.NOT_SERVING);
  }
  await all;
  isCounting = false;
  t.equal(startedAt.length, CALLS);
  const between = startedAt.slice(1).map((turn, i) => turn - (startedAt[i] ?? 0));
  t.ok(Math.min(...between) >= TURNS_LEAST, `turns from one to the next: ${between}`);
  t.ok(answered >= CALLS, `${answered} short calls were answered meanwhile`);
});

t.test("one that is given up meanwhile is recorded so, and the next ones go on", async (t) => {
  codes.length = 0;
  const client = open().client(NodeService);
  const first = client.announce(long);
  const controller = new AbortController();
  const givenUp = client.announce(long, { signal: controller.signal });
  const last = client.announce(long);
  // Its turn comes when the first is done.
  await first;
  controller.abort();
  await t.rejects(givenUp);
  await last;
  t.same(codes.toSorted(), ["canceled", "ok", "ok"]);
});

t.test("a stop ends those that wait", async (t) => {
  const own = await createGrpcServer({
    routes: [route(NodeService, { announce: () => ({}) })],
    bind: ["127.0.0.1"],
    port: 0,
    portFlag: "--port",
  });
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: own.port }] });
  t.teardown(() => channel.close());
  const calls = Array.from({ length: CALLS }, () => channel.client(NodeService).announce(long));
  const ends = Promise.allSettled(calls);
  await new Promise((resolve) => setTimeout(resolve, 50));
  await own.stop(0);
  t.equal((await ends).length, CALLS);
});
