// The Redis directory against a real redis-server, whose wall clock the test moves.
import { createRedisDirectory, parseRedisUrl } from "@weightline/control-plane";
import { createLogger } from "@weightline/runtime";
import t, { type Test } from "tap";
import { createRedisServer } from "../../../test/support/redis-server.ts";
import { directoryConformance } from "./directory-conformance.ts";

const lifetimes = { heartbeatTimeoutMs: 90_000, gcTimeoutMs: 3_600_000 };
const log = createLogger({ program: "test", level: "error", format: "json", file: "" });

t.test("the Redis directory", async (t) => {
  const server = await createRedisServer({ movableClock: true });
  t.teardown(() => server.remove());
  let past = 0;
  directoryConformance(t as Test, {
    ...lifetimes,
    async make() {
      await server.cli("FLUSHALL");
      const directory = createRedisDirectory({
        ...lifetimes,
        address: parseRedisUrl(server.url),
        ca: undefined,
        timeoutMs: 10_000,
        statusTtlMs: 3_600_000,
        announceIntervalMs: 10_000,
        reaperIntervalMs: 1,
        observer: { failed: () => undefined, reconnected: () => undefined },
        log,
        clock: { monotonicMs: () => performance.now() + past, unixMs: () => Date.now() },
      });
      await directory.ready();
      return {
        directory,
        advance: async (ms) => {
          past += ms;
          server.shiftClock(past);
        },
      };
    },
  });
});
