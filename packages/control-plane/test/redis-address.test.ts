// REDIS_URL: its forms, and field case 35: what a raw character in a password is told.
import { CONTROL_PLANE_OPTIONS, parseRedisUrl } from "@weightline/control-plane";
import { readConfiguration } from "@weightline/runtime";
import t from "tap";

t.test("every form", async (t) => {
  const one = { kind: "single", path: undefined, primary: undefined, database: 0, tls: false };
  for (const [url, expected] of [
    ["redis://r", { ...one, hosts: [{ host: "r", port: 6379 }], username: undefined, password: undefined }],
    ["redis://r:7/3", { hosts: [{ host: "r", port: 7 }], database: 3 }],
    ["rediss://r:7", { tls: true }],
    ["redis://[fd00::1]:7", { hosts: [{ host: "fd00::1", port: 7 }] }],
    ["redis://user:secret@r", { username: "user", password: "secret" }],
    ["redis://:secret@r/0", { username: undefined, password: "secret" }],
    ["redis://user@r", { username: "user", password: undefined }],
    [
      "unix:///run/redis.sock?db=2&user=u&pass=p",
      { path: "/run/redis.sock", database: 2, username: "u", password: "p" },
    ],
    ["redis+unix:///run/r.sock", { kind: "single", path: "/run/r.sock", hosts: [] }],
    [
      "redis-sentinel://:p@a:1,b/primary/4",
      {
        kind: "sentinel",
        hosts: [
          { host: "a", port: 1 },
          { host: "b", port: 26379 },
        ],
        primary: "primary",
        database: 4,
      },
    ],
    [
      "rediss-cluster://a:1,b:2",
      {
        kind: "cluster",
        tls: true,
        hosts: [
          { host: "a", port: 1 },
          { host: "b", port: 2 },
        ],
      },
    ],
  ] as const) {
    t.match(parseRedisUrl(url), expected, url);
  }
});

t.test("35: percent-encoded passwords are decoded", async (t) => {
  for (const password of ["a=b", "a@b", "a/b", "a#b", "a%b", "a?b", "a:b", "é ü", "%40"]) {
    t.equal(parseRedisUrl(`redis://u:${encodeURIComponent(password)}@r:6379/0`).password, password);
  }
  t.equal(parseRedisUrl("redis://u:a=b@r").password, "a=b", "an = may stay as it is");
});

t.test("35: raw ones are refused, with the variable and the character, and no part of the secret", async (t) => {
  for (const [character, encoded] of [
    ["@", "%40"],
    ["/", "%2F"],
    ["#", "%23"],
    ["?", "%3F"],
    ["%", "%25"],
  ] as const) {
    for (const password of [
      `hun${character}ter2`,
      `${character}hunter2`,
      `hunter2${character}`,
      `hun${character}${character}ter2`,
    ]) {
      const url = `redis://u:${password}@redis.example:6379/0`;
      const read = () =>
        readConfiguration({
          table: CONTROL_PLANE_OPTIONS,
          argv: [],
          env: { MX_METADATA_BACKEND: "redis", REDIS_URL: url },
        });
      t.throws(
        () => parseRedisUrl(url),
        { code: "InvalidArgument", field: "REDIS_URL", wayOut: new RegExp(encoded) },
        url,
      );
      try {
        read();
        t.fail(`${url} was accepted`);
      } catch (error) {
        const { message, wayOut } = error as { message: string; wayOut: string };
        const all = `${message} ${wayOut}`;
        t.match(all, /REDIS_URL/);
        t.match(all, encoded);
        t.notMatch(all, /hun|ter2/);
      }
    }
  }
});

t.test("what is none is refused with the forms that there are", async (t) => {
  for (const url of [
    "http://r",
    "r:6379",
    "redis://",
    "redis://r:0",
    "redis://r:99999",
    "redis://r:x",
    "redis://a,b",
    "redis://r/x",
    "unix://relative",
    "redis-sentinel://a:1",
    "redis-sentinel://a:1/",
    "redis-cluster://a/3",
  ]) {
    t.throws(() => parseRedisUrl(url), { code: "InvalidArgument", field: "REDIS_URL", limit: /redis-sentinel:/ }, url);
  }
});
