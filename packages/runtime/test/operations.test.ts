import { spawn, spawnSync } from "node:child_process";
import { type IncomingHttpHeaders, request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type CallFailure,
  COLLECT_TIMEOUT_MS,
  createMetrics,
  createOperationsServer,
  describeError,
  ERROR_CODES,
  toWeightlineError,
  WeightlineError,
} from "@weightline/runtime";
import t from "tap";

const metrics = createMetrics();
metrics.counter("test_things_total", "Things", ["kind"]).inc({ kind: 'a"\\\n' }, 3);
metrics.histogram("test_wait_seconds", "Waits", [0.1, 1]).observe(0.5);
let reasons: string[] = ["starting"];
const failures: CallFailure[] = [];
const server = await createOperationsServer({
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--metrics-port",
  metrics,
  notReady: () => reasons,
  onFailure: (failure) => failures.push(failure),
  routes: (http) => {
    http.get("/v1/x", async () => ({ x: 1 }));
    http.get("/v1/lost", async () => {
      throw new WeightlineError("Unavailable", "the backend does not answer");
    });
    http.get("/v1/broken", async () => {
      throw new Error("the secret cause");
    });
  },
});
t.teardown(() => server.stop());
const get = (path: string, accept = "*/*") => fetch(`http://127.0.0.1:${server.port}${path}`, { headers: { accept } });

t.test("health and readiness", async (t) => {
  t.equal((await get("/healthz")).status, 200);
  const starting = await get("/readyz");
  t.equal(starting.status, 503);
  t.match(await starting.json(), { ready: false, reasons: ["starting"] });
  reasons = [];
  t.equal((await get("/readyz")).status, 200);
  t.match(await (await get("/v1/x")).json(), { x: 1 });
  t.equal((await get("/none")).status, 404);
});

t.test("a request that fails: its caller has the id that the log has, and no cause of a fault", async (t) => {
  for (const [path, status, code, message] of [
    ["/v1/lost", 503, "Unavailable", /the backend does not answer/],
    ["/v1/broken", 500, "Internal", /^internal error; the program's log has the cause under request [0-9a-f]{8}$/],
  ] as const) {
    const reply = await get(path);
    t.equal(reply.status, status);
    const body = (await reply.json()) as { request: string };
    t.match(body, { code, error: message, request: /^[0-9a-f]{8}$/ });
    t.equal(reply.headers.get("weightline-request-id"), body.request);
    t.match(
      failures.filter(({ requestId }) => requestId === body.request),
      [{ method: `GET ${path}`, code }],
    );
  }
  t.match(failures.at(-1)?.error, { message: "the secret cause" });
});

t.test("a scrape is whole though one part of it fails, throws or hangs", async (t) => {
  const own = createMetrics();
  const gauge = (name: string) => own.gauge(name, name);
  const [rejects, throws, hangs, works] = [
    gauge("test_rejects"),
    gauge("test_throws"),
    gauge("test_hangs"),
    gauge("test_works"),
  ];
  own.onCollect(() => Promise.reject(new Error("no backend")).finally(() => rejects.set(1)));
  own.onCollect(() => {
    throws.set(1);
    throw new Error("no");
  });
  own.onCollect(() => {
    hangs.set(1);
    return new Promise(() => undefined);
  });
  own.onCollect(() => works.set(1));
  const start = performance.now();
  const { body } = await own.render("");
  t.ok(performance.now() - start >= COLLECT_TIMEOUT_MS - 50, "the one that hangs was waited for");
  for (const name of ["rejects", "throws", "hangs", "works"]) {
    t.match(body, new RegExp(`^test_${name} 1$`, "m"), `${name} ran`);
  }
});

t.test("the event loop's delay is what it was held up, and nothing when it was not", async (t) => {
  const own = createMetrics();
  const delay = async (percentile: string) => {
    const { body } = await own.render("");
    return Number(new RegExp(`delay_seconds\\{percentile="${percentile}"\\} (\\S+)`).exec(body)?.[1]);
  };
  let quiet = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 20 && quiet > 0.005; i++) {
    await sleep(100);
    quiet = Math.min(quiet, await delay("50"));
  }
  t.ok(quiet <= 0.005, `half of all timers are in time: ${quiet}`);
  await sleep(50);
  const end = performance.now() + 400;
  while (performance.now() < end) {
    // Nothing else runs meanwhile.
  }
  await sleep(50);
  const held = await delay("99");
  t.ok(held > 0.3, `${held} s`);
});

/** Accept headers as they are sent, and whether they get OpenMetrics. */
const ACCEPTS: ReadonlyArray<readonly [string, string | undefined, boolean]> = [
  ["none", undefined, false],
  ["curl", "*/*", false],
  [
    "Prometheus 2",
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    true,
  ],
  ["Prometheus 2 before OpenMetrics", "text/plain;version=0.0.4;q=1,*/*;q=0.1", false],
  [
    "Prometheus 3",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    true,
  ],
  [
    "Prometheus 3 with native histograms",
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    true,
  ],
  ["text preferred", "application/openmetrics-text;version=1.0.0;q=0.3, text/plain;version=0.0.4;q=0.9", false],
  ["OpenMetrics refused", "application/openmetrics-text;q=0,text/plain", false],
  ["any version of OpenMetrics", "Application/OpenMetrics-Text", true],
  ["a later OpenMetrics alone", "application/openmetrics-text;version=9.0.0", false],
  ["nonsense", ";;q=x,,text/;version", false],
];

/** A scrape with exactly these headers. */
function scrape(headers: Record<string, string>): Promise<{ headers: IncomingHttpHeaders; body: string }> {
  return new Promise((resolve, reject) => {
    const call = request({ host: "127.0.0.1", port: server.port, path: "/metrics", headers }, (reply) => {
      let body = "";
      reply.setEncoding("utf8").on("data", (text) => {
        body += text;
      });
      reply.on("end", () => resolve({ headers: reply.headers, body }));
    });
    call.on("error", reject).end();
  });
}

const promtool = spawnSync("promtool", ["--version"]).status === 0;

t.test("38: each scraper gets a body of the type that it asked for", async (t) => {
  for (const [name, accept, open] of ACCEPTS) {
    for (const encoding of [undefined, "gzip"]) {
      const { headers, body } = await scrape({
        ...(accept === undefined ? {} : { accept }),
        ...(encoding === undefined ? {} : { "accept-encoding": encoding }),
      });
      t.match(
        headers["content-type"],
        open ? /^application\/openmetrics-text; version=1.0.0/ : /^text\/plain; version=0.0.4/,
        `${name}, ${encoding ?? "not compressed"}`,
      );
      t.equal(headers["content-encoding"], undefined, "it is sent as it is");
      t.equal(body.endsWith("\n# EOF\n"), open);
      t.ok(body.endsWith("\n"));
      t.match(body, 'test_things_total{kind="a\\"\\\\\\n"} 3');
      t.match(body, open ? "# TYPE test_things counter" : "# TYPE test_things_total counter");
      t.match(body, 'test_wait_seconds_bucket{le="1"} 1');
      t.match(body, /weightline_resident_memory_bytes \d+/);
      t.match(body, /weightline_event_loop_delay_seconds\{percentile="99"\} /);
      t.notMatch(body, / # \{/, "no exemplars");
      if (open) {
        t.notMatch(body, /\n\n/);
      }
    }
  }
});

t.test("38: promtool accepts the text", { skip: promtool ? false : "promtool is not installed" }, async (t) => {
  const { body } = await scrape({});
  const done = spawnSync("promtool", ["check", "metrics"], { input: body, encoding: "utf8" });
  // Names that it minds fail too, not only what it cannot read.
  t.equal(done.stderr, "");
  t.equal(done.status, 0);
  const broken = spawnSync("promtool", ["check", "metrics"], { input: `${body}not a metric`, encoding: "utf8" });
  t.not(broken.status, 0, "it would tell");
});

t.test("errors: every code has an RPC code, an exit code and a meaning; a line says what to do", async (t) => {
  for (const [code, { rpc, exit, meaning }] of Object.entries(ERROR_CODES)) {
    t.ok(rpc > 0 && exit > 0 && exit <= 6 && meaning.length > 10, code);
  }
  t.equal(
    describeError(new WeightlineError("NotFound", "no m", { near: ["n"], wayOut: "load it" })),
    "no m; near: n; way out: load it",
  );
  t.match(toWeightlineError(Object.assign(new Error("x"), { code: "Corrupt", field: "f", wayOut: "w" })), {
    code: "Corrupt",
    field: "f",
    wayOut: "w",
  });
  t.equal(toWeightlineError(Object.assign(new Error("x"), { code: "ENOENT" })).code, "Internal");
  t.equal(toWeightlineError("text").code, "Internal");
});

/** Runs a program of runtime's lifecycle; gives its exit code and output. */
function program(
  body: string,
  act: (child: ReturnType<typeof spawn>) => void,
): Promise<{ code: number | null; output: string }> {
  const index = new URL("../src/index.ts", import.meta.url).pathname;
  const child = spawn(
    process.execPath,
    [
      "--input-type=module-typescript",
      "-e",
      `import { createLifecycle, runProgram, WeightlineError } from "${index}";\n${body}`,
    ],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  let output = "";
  let acted = false;
  const take = (data: Buffer) => {
    output += data.toString();
    if (!acted && output.includes("up")) {
      acted = true;
      act(child);
    }
  };
  child.stdout.on("data", take);
  child.stderr.on("data", take);
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, output })));
}

t.test(
  "a program: stops in reverse on SIGTERM, a second signal cuts it short, a failure ends it with its cause",
  async (t) => {
    const parts = `const life = createLifecycle(() => {}); for (const name of ["a", "b", "c"]) life.add({ name, stop: () => { console.log("stop " + name); if (name === "b") throw new Error("b"); } });`;
    const clean = await program(
      `${parts} await runProgram("p", async () => { console.log("up"); setInterval(() => {}, 1000); return { failed: new Promise(() => {}), stop: () => life.stop(100) }; });`,
      (child) => child.kill("SIGTERM"),
    );
    t.equal(clean.code, 0);
    t.match(clean.output, /stop c\nstop b\nstop a/, "a part that fails does not keep the others");
    const slow = await program(
      `await runProgram("p", async () => { console.log("up"); setInterval(() => {}, 1000); return { failed: new Promise(() => {}), stop: () => new Promise((r) => setTimeout(r, 60000)) }; });`,
      (child) => {
        child.kill("SIGTERM");
        setTimeout(() => child.kill("SIGTERM"), 200);
      },
    );
    t.equal(slow.code, 130);
    const failed = await program(
      `await runProgram("p", async () => { throw new WeightlineError("InvalidArgument", "--x is wrong", { wayOut: "mend it" }); });`,
      () => undefined,
    );
    t.equal(failed.code, 1);
    t.match(failed.output, /^p: --x is wrong; way out: mend it\n$/);
    const later = await program(
      `await runProgram("p", async () => { console.log("up"); setTimeout(() => Promise.reject(new Error("nobody caught me")), 20); setInterval(() => {}, 1000); return { failed: new Promise(() => {}), stop: async () => {} }; });`,
      () => undefined,
    );
    t.equal(later.code, 1);
    t.match(later.output, /nobody caught me/);
  },
);
