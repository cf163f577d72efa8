import {
  formatAddress,
  formatByteSize,
  formatDuration,
  isLoopback,
  parseAddress,
  parseAddresses,
  parseByteSize,
  parseDuration,
} from "@weightline/runtime";
import t from "tap";

t.test("byte sizes", async (t) => {
  for (const [text, bytes] of [
    ["0", 0],
    ["4096", 4096],
    ["1Ki", 1024],
    ["64GiB", 64 * 2 ** 30],
    ["1.5M", 1_500_000],
    ["100MB", 1e8],
    ["9007199254740991", 2 ** 53 - 1],
  ] as const) {
    t.equal(parseByteSize(text), bytes, text);
  }
  for (const text of ["", "x", "-1", "1.2345K", "1 Q", "9007199254740992", "99999999T", "1e9"]) {
    t.equal(parseByteSize(text), undefined, text);
  }
  t.same([0, 1023, 1024, 90_868_376, 2 ** 40].map(formatByteSize), ["0 B", "1023 B", "1.0 KiB", "86.7 MiB", "1.0 TiB"]);
});

t.test("durations", async (t) => {
  for (const [text, ms] of [
    ["7d", 604_800_000],
    ["1h30m", 5_400_000],
    ["250ms", 250],
    ["1.5s", 1500],
  ] as const) {
    t.equal(parseDuration(text), ms, text);
  }
  for (const text of ["", "5", "s", "1 s", "-1s", "1x"]) {
    t.equal(parseDuration(text), undefined, text);
  }
  t.same([1000, 90_000, 3_600_000, 1500].map(formatDuration), ["1s", "90s", "1h", "1500ms"]);
});

t.test("addresses", async (t) => {
  t.same(parseAddress("http://host:8001/", "x"), { host: "host", port: 8001 });
  t.same(parseAddress("[fd00::1]:1", "x"), { host: "fd00::1", port: 1 });
  t.equal(formatAddress({ host: "fd00::1", port: 1 }), "[fd00::1]:1");
  t.equal(parseAddresses("a:1, b:2", "x").length, 2);
  for (const text of ["", "host", "host:", "fd00::1:8001", ":1", "h:65536", "h:x"]) {
    t.throws(
      () => parseAddress(text, "--endpoint"),
      { code: "InvalidArgument", field: "--endpoint", value: text },
      text,
    );
  }
  t.same(["localhost", "127.1.2.3", "::1", "10.0.0.1"].map(isLoopback), [true, true, true, false]);
});
