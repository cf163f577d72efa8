import { createMemoryDirectory } from "@weightline/control-plane";
import t, { type Test } from "tap";
import { directoryConformance } from "./directory-conformance.ts";

const lifetimes = { heartbeatTimeoutMs: 90_000, gcTimeoutMs: 3_600_000 };

t.test("the memory directory", async (t) => {
  directoryConformance(t as Test, {
    ...lifetimes,
    async make() {
      let now = 1_000_000;
      // Unix time goes backwards while the monotonic clock runs: lifetimes must not care.
      const clock = { monotonicMs: () => now, unixMs: () => 2_000_000_000_000 + (now % 7) };
      return {
        directory: createMemoryDirectory({ ...lifetimes, announceIntervalMs: 10_000, reaperIntervalMs: 1, clock }),
        advance: async (ms) => {
          now += ms;
        },
      };
    },
  });
});
