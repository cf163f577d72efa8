// What is scraped, and what is made of it: bodies of real daemons, and the rules in deploy/monitoring.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { gunzipSync } from "node:zlib";
import { create } from "@bufbuild/protobuf";
import { P2pService, SourceIdentitySchema } from "@weightline/proto/p2p";
import { createGrpcChannel, parseAddress } from "@weightline/runtime";
import t from "tap";
import { parse } from "yaml";
import { createCluster, freePort } from "./support/cluster.ts";
import { type Finished, PROMTOOL, pythonEnvironment, ROOT, runCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const promtool = (parameters: readonly string[], more: { input?: string; cwd?: string } = {}): Promise<Finished> =>
  runCommand([PROMTOOL, ...parameters], more);

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const controlPort = await freePort();
await cluster.startControlPlane(["--metrics-port", String(controlPort)]);
const a = await cluster.startAgent("a");
const b = await cluster.startAgent("b");
const DAEMONS = [
  ["control plane", controlPort],
  ["agent", b.metricsPort],
] as const;

/** Names that users choose, and that bite in label values. */
const NAME = 'a"b\\c\nd é # EOF {x="1"} 1';

/** A scrape with exactly these headers; gives the body as it is on the wire. */
function scrape(
  port: number,
  headers: Record<string, string>,
): Promise<{ type: string; encoding: string; body: Buffer }> {
  return new Promise((resolve, reject) => {
    const call = request({ host: "127.0.0.1", port, path: "/metrics", headers }, (reply) => {
      const parts: Buffer[] = [];
      reply.on("data", (part: Buffer) => parts.push(part));
      reply.on("end", () =>
        resolve({
          type: reply.headers["content-type"] ?? "",
          encoding: reply.headers["content-encoding"] ?? "",
          body: Buffer.concat(parts),
        }),
      );
    });
    call.on("error", reject).end();
  });
}

const PROMETHEUS_2 =
  "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
const PROMETHEUS_3 =
  "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";

/** Python's own client reads OpenMetrics by the letter; prints the names of the samples. */
const READ = `
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
from prometheus_client.parser import text_string_to_metric_families as plain
read = strict if sys.argv[1] == "open" else plain
print(json.dumps(sorted({s.name for f in read(sys.stdin.read()) for s in f.samples})))
`;

t.test(
  "38: bodies of both daemons after a run, for every scraper, read by Prometheus' tool and by Python's client",
  async (t) => {
    const path = `${cluster.folder}/m.safetensors`;
    writeTensors(path, { w: { dtype: "U8", shape: [3_000_000] } });
    await cluster.load(a, path, "m");
    t.equal(await b.python('with agent.acquire(model_name="m") as held: print(held.outcome)'), "received");
    t.equal(
      (await cluster.mxctl(["pull", "--model-name", NAME], b)).code,
      3,
      "a call that fails, with a name that bites",
    );
    const channel = createGrpcChannel({ addresses: [parseAddress(cluster.controlPlane(), "address")] });
    t.teardown(() => channel.close());
    const identity = create(SourceIdentitySchema, { modelName: NAME });
    await channel.client(P2pService).publishMetadata({ identity, workerId: NAME, worker: { workerRank: 0 } });
    for (const [name, port] of DAEMONS) {
      let plain = "";
      for (const [scraper, accept, open] of [
        ["none", undefined, false],
        ["Prometheus 2", PROMETHEUS_2, true],
        ["Prometheus 3", PROMETHEUS_3, true],
      ] as const) {
        for (const encoding of [undefined, "gzip"]) {
          const headers = {
            ...(accept === undefined ? {} : { accept }),
            ...(encoding === undefined ? {} : { "accept-encoding": encoding }),
          };
          const reply = await scrape(port, headers);
          const body = (reply.encoding === "gzip" ? gunzipSync(reply.body) : reply.body).toString("utf8");
          const words = `${name}, ${scraper}, ${encoding ?? "not compressed"}`;
          t.match(
            reply.type,
            open ? /^application\/openmetrics-text; version=1.0.0/ : /^text\/plain; version=0.0.4/,
            words,
          );
          t.ok(body.endsWith(open ? "\n# EOF\n" : "\n"), words);
          const done = await runCommand(["python3", "-c", READ, open ? "open" : "plain"], {
            env: pythonEnvironment(),
            input: body,
          });
          t.equal(done.code, 0, `${words}: ${done.stderr}`);
          const samples: string[] = done.code === 0 ? JSON.parse(done.stdout) : [];
          t.ok(samples.includes("weightline_build_info") && samples.length > 15, `${words}: ${samples.length} samples`);
          plain = open ? plain : body;
        }
      }
      const checked = await promtool(["check", "metrics"], { input: plain });
      t.match(checked, { code: 0, stderr: "" }, `${name}: promtool accepts it, names included`);
      t.match(
        await promtool(["check", "metrics"], { input: `${plain}weightline_bad{x="1"} 1 2 3\n` }),
        { code: 1 },
        "and would tell",
      );
    }
  },
);

t.test("the control plane counts what it holds and what it was told", async (t) => {
  const value = async (sample: string) => {
    const { body } = await scrape(controlPort, {});
    const line = body
      .toString("utf8")
      .split("\n")
      .find((text) => text.startsWith(`${sample} `));
    return Number(line?.slice(sample.length + 1));
  };
  const channel = createGrpcChannel({ addresses: [parseAddress(cluster.controlPlane(), "address")] });
  t.teardown(() => channel.close());
  for (let i = 0; i < 400 && !((await value("weightline_workers")) >= 3); i++) {
    // Counted once in ten seconds at most: two holders of "m" and the stock worker.
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  t.equal(await value("weightline_workers"), 3);
  t.equal(await value("weightline_sources"), 2);
  t.equal(await value('weightline_nodes{state="ready"}'), 2);
  t.equal(await value('weightline_nodes{state="lost"}'), 0);
  t.ok((await value('weightline_announces_total{verdict="accepted"}')) >= 2);
  t.equal(await value('weightline_backend_up{backend="memory"}'), 1);
  t.equal(await value('weightline_backend_errors_total{backend="memory",kind="timeout"}'), 0);
  t.equal(await value("weightline_ready"), 1);
  t.ok((await value('weightline_directory_seconds_count{backend="memory",operation="health"}')) >= 1);
  t.ok(
    (await value(
      'weightline_rpc_seconds_count{service="model_express.p2p.P2pService",method="PublishMetadata",code="ok"}',
    )) >= 1,
  );
});

interface Rule {
  alert: string;
  expr: string;
  labels: { severity: string };
  annotations: { summary: string; description: string };
}
const FOLDER = `${ROOT}deploy/monitoring`;
const text = readFileSync(`${FOLDER}/alerts.yaml`, "utf8");
const rules: Rule[] = parse(text).groups.flatMap((group: { rules: Rule[] }) => group.rules);

t.test("alerts: promtool accepts the rules and their tests, and each rule's tests can fail", async (t) => {
  t.ok(rules.length >= 20);
  t.match(await promtool(["check", "rules", "alerts.yaml"], { cwd: FOLDER }), { code: 0, stdout: /SUCCESS/ });
  t.match(await promtool(["test", "rules", "alerts.test.yaml"], { cwd: FOLDER }), { code: 0, stdout: /SUCCESS/ });
  const copy = mkdtempSync(`${tmpdir()}/weightline-alerts-`);
  t.teardown(() => rmSync(copy, { recursive: true }));
  const cases = parse(readFileSync(`${FOLDER}/alerts.test.yaml`, "utf8")) as { tests: Array<{ name: string }> };
  for (const [expr, kind] of [
    ["vector(1) > 2", "fires"],
    ["vector(1)", "keeps quiet"],
  ] as const) {
    const own = parse(text) as { groups: Array<{ rules: Rule[] }> };
    for (const rule of own.groups.flatMap((group) => group.rules)) {
      rule.expr = expr;
    }
    const some = cases.tests.filter(({ name }) => name.endsWith(` ${kind}`));
    writeFileSync(`${copy}/alerts.yaml`, JSON.stringify(own));
    writeFileSync(`${copy}/alerts.test.yaml`, JSON.stringify({ ...cases, tests: some }));
    const done = await promtool(["test", "rules", "alerts.test.yaml"], { cwd: copy });
    t.equal(done.code, 1);
    for (const { alert } of rules) {
      t.match(
        `${done.stdout}${done.stderr}`,
        new RegExp(`alertname: ${alert}\\b`),
        `${alert}: the test that it ${kind}`,
      );
    }
  }
});

t.test("alerts: every metric, label and event that they name is there; each says what to do", async (t) => {
  const metrics = readFileSync(`${ROOT}docs/metrics.md`, "utf8");
  const listed = new Map(
    [...metrics.matchAll(/^\| `([a-z_]+)(?:\{([a-z_,]+)\})?` \| (\w+) \|/gm)].map(
      ([, name = "", labels = "", kind = ""]) => [
        name,
        { labels: [...labels.split(","), ...(kind === "histogram" ? ["le"] : [])], kind },
      ],
    ),
  );
  const events = readFileSync(`${ROOT}docs/events.md`, "utf8");
  t.ok(listed.size > 30);
  for (const { alert, expr, labels, annotations } of rules) {
    t.match(alert, /^Weightline[A-Z]/);
    t.match(labels.severity, /^(critical|warning|info)$/);
    t.ok(annotations.summary.length > 10 && annotations.description.length > 30, `${alert} has its words`);
    for (const [, event = ""] of annotations.description.matchAll(/(?<![a-z-])([a-z]+(?:-[a-z]+)+)(?![a-z-])/g)) {
      t.ok(events.includes(`\`${event}\``) || event === "memory-limit" || event === "node-name", `${alert}: ${event}`);
    }
    const names = [...expr.matchAll(/\b((?:weightline|process)_[a-z_]+)(\{[^}]*\})?/g)];
    t.ok(names.length > 0, `${alert} asks for a metric`);
    for (const [, shown = "", matchers = ""] of names) {
      const base = shown.replace(/_(bucket|count|sum)$/, "");
      const metric = listed.get(shown) ?? listed.get(base);
      t.ok(metric !== undefined && (metric.kind === "histogram") === (base !== shown), `${alert}: ${shown}`);
      for (const [, label = ""] of matchers.matchAll(/(\w+)(?:=~|!~|!=|=)"/g)) {
        t.ok(metric?.labels.includes(label), `${alert}: ${shown} has the label ${label}`);
      }
    }
  }
});
