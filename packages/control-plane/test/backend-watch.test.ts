// Health tells the truth about a backend that is lost, hangs and comes back; time is the test's own.
import { Code } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Serving } from "@weightline/proto/grpc-health";
import { createGrpcChannel, createGrpcServer, createLogger, type Logger } from "@weightline/runtime";
import t from "tap";
import { type BackendState, CHECK_INTERVAL_MS, CHECK_TIMEOUT_MS, createBackendWatch } from "../src/backend-watch.ts";
import { createSizeCounter } from "../src/directory/directory-size.ts";
import { createServingState } from "../src/serving-state.ts";

/** A clock that stands still until it is told otherwise. */
function createTestClock() {
  let now = 0;
  const waits = new Set<{ at: number; resolve: () => void }>();
  const settle = async () => {
    // Whatever the last step set free has run when the event loop comes round.
    await new Promise((resolve) => setImmediate(resolve));
  };
  return {
    monotonicMs: () => now,
    sleep: (ms: number, signal: AbortSignal) =>
      new Promise<void>((resolve, reject) => {
        signal.throwIfAborted();
        const wait = { at: now + ms, resolve };
        waits.add(wait);
        signal.addEventListener("abort", () => {
          waits.delete(wait);
          reject(signal.reason);
        });
      }),
    waiting: () => waits.size,
    async advance(ms: number) {
      const end = now + ms;
      for (;;) {
        await settle();
        const [next] = [...waits].filter(({ at }) => at <= end).toSorted((a, b) => a.at - b.at);
        if (next === undefined) {
          break;
        }
        now = next.at;
        waits.delete(next);
        next.resolve();
      }
      now = end;
      await settle();
    },
  };
}

/** A backend that does what the test says, and counts how often it was asked. */
function createTestBackend() {
  let answer: () => Promise<void> = async () => undefined;
  let asked = 0;
  return {
    backend: "redis",
    health: () => {
      asked += 1;
      return answer();
    },
    asked: () => asked,
    now: (next: () => Promise<void>) => {
      answer = next;
    },
  };
}

function createTestLog() {
  const events: Array<Record<string, unknown>> = [];
  const take = (fields: Record<string, unknown>) => void events.push(fields);
  return { log: { info: take, error: take } as unknown as Logger, events };
}

async function watched(start: () => Promise<void> = async () => undefined) {
  const clock = createTestClock();
  const directory = createTestBackend();
  directory.now(start);
  const { log, events } = createTestLog();
  const changes: BackendState[] = [];
  const starting = createBackendWatch({ directory, log, clock, onChange: (state) => changes.push(state) });
  return { clock, directory, events, changes, starting };
}

t.test("lost, with its reason as it changes, and back: one event each; asked once a second", async (t) => {
  const { clock, directory, events, changes, starting } = await watched();
  const watch = await starting;
  t.same(changes, [{ ok: true, since: 0, reason: "" }]);
  await clock.advance(10 * CHECK_INTERVAL_MS);
  t.equal(directory.asked(), 11);
  t.same(events, [], "nothing is said of a backend that answers");
  directory.now(() => Promise.reject(new Error("connection refused")));
  await clock.advance(CHECK_INTERVAL_MS);
  t.match(watch.state(), { ok: false, since: 11_000, reason: /connection refused/ });
  directory.now(() => Promise.reject(new Error("it is loading")));
  await clock.advance(5 * CHECK_INTERVAL_MS);
  t.match(watch.state(), { ok: false, since: 11_000, reason: /it is loading/ }, "since the first failure");
  directory.now(async () => undefined);
  await clock.advance(CHECK_INTERVAL_MS);
  t.same(watch.state(), { ok: true, since: 17_000, reason: "" });
  t.match(events, [
    { event: "backend-lost", backend: "redis", error: /connection refused/ },
    { event: "backend-back", backend: "redis", away_ms: 6000 },
  ]);
  t.equal(events.length, 2);
  t.same(
    changes.map(({ ok }) => ok),
    [true, false, true],
  );
  watch.stop();
  const asked = directory.asked();
  await clock.advance(10 * CHECK_INTERVAL_MS);
  t.equal(directory.asked(), asked, "it stops");
  t.equal(clock.waiting(), 0, "and leaves no timer");
});

t.test(
  "a backend that hangs is lost by the deadline; its late answer changes nothing, the next check does",
  async (t) => {
    const { clock, directory, events, starting } = await watched();
    const watch = await starting;
    const late = Promise.withResolvers<void>();
    directory.now(() => late.promise);
    await clock.advance(CHECK_INTERVAL_MS + CHECK_TIMEOUT_MS - 1);
    t.equal(watch.state().ok, true, "until the deadline it may answer");
    await clock.advance(1);
    t.match(watch.state(), { ok: false, reason: `no answer within ${CHECK_TIMEOUT_MS} ms` });
    directory.now(() => new Promise(() => undefined));
    late.resolve();
    await clock.advance(CHECK_INTERVAL_MS + CHECK_TIMEOUT_MS);
    t.equal(watch.state().ok, false, "the late answer was to an old question");
    directory.now(async () => undefined);
    await clock.advance(CHECK_INTERVAL_MS);
    t.equal(watch.state().ok, true);
    t.match(
      events.map(({ event }) => event),
      ["backend-lost", "backend-back"],
    );
    watch.stop();
  },
);

t.test("a backend that is away at the start: the program starts, and is told", async (t) => {
  const { clock, changes, events, starting } = await watched(() => new Promise(() => undefined));
  await clock.advance(CHECK_TIMEOUT_MS);
  const watch = await starting;
  t.match(changes, [{ ok: false }]);
  t.match(events, [{ event: "backend-lost" }]);
  watch.stop();
});

const NAMES = ["p.P2pService", "n.NodeService", "h.HealthService"];

t.test("grpc.health.v1, /readyz and HealthService follow backend and drain, and watchers hear of it", async (t) => {
  const state = createServingState("redis", NAMES, ["p.P2pService", "n.NodeService"]);
  const server = await createGrpcServer({ bind: ["127.0.0.1"], port: 0, portFlag: "--port", routes: [state.route] });
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
  t.teardown(async () => {
    channel.close();
    await server.stop(0);
  });
  const health = channel.client(Health);
  const serving = async () =>
    (await Promise.all(["", ...NAMES].map((service) => health.check({ service })))).map(
      ({ status }) => status === Serving.SERVING,
    );
  t.same(await serving(), [false, false, false, false]);
  t.same(state.reasons(), ["starting"]);
  state.backend({ ok: true, since: 0, reason: "" });
  t.same(await serving(), [false, false, false, false], "a backend that answers is no start");
  state.started();
  t.same(await serving(), [true, true, true, true]);
  t.same([state.reasons(), state.status()], [[], "ok"]);
  let next = Promise.withResolvers<void>();
  const seen: boolean[] = [];
  const watching = (async () => {
    for await (const { status } of health.watch({ service: "" })) {
      seen.push(status === Serving.SERVING);
      next.resolve();
    }
  })().catch((error: unknown) => error);
  const told = async (change: () => void) => {
    const before = next.promise;
    change();
    await before;
    next = Promise.withResolvers();
  };
  await told(() => undefined);
  await told(() => state.backend({ ok: false, since: 0, reason: "it refuses 10.0.0.5" }));
  t.same(await serving(), [false, false, false, true]);
  t.match(state.reasons(), [/the directory's backend \(redis\) does not answer: it refuses 10.0.0.5/]);
  t.equal(state.status(), "degraded: the backend redis does not answer", "no address for whoever asks");
  await told(() => state.backend({ ok: true, since: 0, reason: "" }));
  t.same(await serving(), [true, true, true, true]);
  await told(() => state.drain());
  state.backend({ ok: false, since: 0, reason: "x" });
  state.backend({ ok: true, since: 0, reason: "" });
  t.same(await serving(), [false, false, false, false], "a backend that comes back ends no drain");
  t.same([state.reasons(), state.status()], [["draining"], "draining"]);
  await server.stop(1000);
  t.match(await watching, { code: Code.Unavailable });
  t.same(seen, [true, false, true, false]);
});

t.test(
  "the directory's size: counted now and then, once for all scrapers, and unknown while it cannot be read",
  async (t) => {
    let now = 0;
    let counts = 0;
    let fails = false;
    const expected = { nodes: { ready: 2, draining: 0, lost: 1 }, sources: 2, workers: 3 };
    const directory = {
      size: async () => {
        counts += 1;
        if (fails) {
          throw new Error("no backend");
        }
        return expected;
      },
    };
    const size = createSizeCounter(directory, () => now);
    t.same(await Promise.all([size(), size(), size()]), [expected, expected, expected]);
    now = 9999;
    t.same(await size(), expected);
    t.equal(counts, 1);
    now = 10_000;
    fails = true;
    t.equal(await size(), undefined);
    t.equal(await size(), undefined, "a failure is not kept");
    t.equal(counts, 3);
    fails = false;
    t.same(await size(), expected);
  },
);

t.test("the real clock", async (t) => {
  const directory = createTestBackend();
  const lost = Promise.withResolvers<BackendState>();
  const log = createLogger({ program: "p", level: "error", format: "json", file: "/dev/null" });
  directory.now(() => new Promise(() => undefined));
  const watch = await createBackendWatch({ directory, log, onChange: lost.resolve });
  t.match(await lost.promise, { ok: false });
  watch.stop();
});
