// One peer floods the control plane in every way that it has; meanwhile another one is served, and afterwards nothing has stayed.
import { readdirSync } from "node:fs";
import t from "tap";
import { createCluster, freePort } from "./support/cluster.ts";
import { FLOOD_KINDS } from "./support/flood.ts";
import { heapBytes, INSPECTABLE } from "./support/heap.ts";
import { openRawConnection, prepareCall, type RawReply } from "./support/http2-frames.ts";
import { readMetric } from "./support/operations-port.ts";
import { until } from "./support/processes.ts";
import { ROOT, startCommand } from "./support/program.ts";

const FLOOD_MS = Number(process.env["WEIGHTLINE_FLOOD_MS"] ?? 700);
/** Of the heap after its garbage has gone: caches of code that first ran meanwhile. */
const HEAP_GROWTH_BYTES = 16 * 1024 * 1024;
/** However long the machine takes: a flood must not look like an outage. */
const CALL_CEILING_MS = 5000;

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const metricsPort = await freePort();
const controlPlane = await cluster.startControlPlane(["--metrics-port", String(metricsPort)], INSPECTABLE);
const port = Number(cluster.controlPlane().split(":")[1]);
const other = await openRawConnection(port, "127.0.0.2");
t.teardown(() => other.close());
const list = prepareCall("/model_express.p2p.P2pService/ListSources", Buffer.alloc(0));

const descriptors = () => readdirSync(`/proc/${controlPlane.pid}/fd`).length;
const metric = (name: string) => readMetric(metricsPort, name);

/** One call of the client that behaves, in ms. */
async function call(): Promise<number> {
  const start = performance.now();
  const reply = await new Promise<RawReply>((resolve) => other.send(list, false, resolve));
  if (!reply.answered) {
    throw new Error("a client that behaves was not answered");
  }
  return performance.now() - start;
}

await call();
await metric("weightline_rpc");
const before = { heap: await heapBytes(controlPlane), descriptors: descriptors() };

for (const kind of FLOOD_KINDS) {
  t.test(`a flood of ${kind}`, async (t) => {
    const flood = startCommand([
      process.execPath,
      "--disable-warning=ExperimentalWarning",
      `${ROOT}test/support/flood.ts`,
      ...[String(port), String(FLOOD_MS), kind],
    ]);
    t.teardown(() => flood.stop());
    await flood.waitFor(/^flooding/);
    let over = false;
    void flood.exited.then(() => {
      over = true;
    });
    let slowest = 0;
    let calls = 0;
    while (!over) {
      slowest = Math.max(slowest, await call());
      calls += 1;
    }
    t.equal(await flood.exited, 0);
    const count = Number(new RegExp(`^${kind} (\\d+)$`, "m").exec(flood.output())?.[1]);
    t.ok(count > 0, `${count} came`);
    t.ok(calls > 0 && slowest < CALL_CEILING_MS, `${calls} calls of another client, the slowest took ${slowest} ms`);
  });
}

t.test("what the limits ended was counted, nothing has stayed, and it is the same process", async (t) => {
  t.ok((await metric('weightline_rpc_limited_total{limit="connections-per-address"}')) > 0);
  t.ok(await controlPlane.waitFor(/"event":"peer-limited"/));
  await until("the end of the flood's connections", async () => (await metric("weightline_rpc_connections")) === 1);
  await until("as many descriptors as before", () => descriptors() <= before.descriptors);
  const grown = (await heapBytes(controlPlane)) - before.heap;
  t.ok(grown < HEAP_GROWTH_BYTES, `the heap grew by ${Math.round(grown / 1024)} KiB`);
  t.notMatch(controlPlane.output(), /"level":"?(error|fatal|50|60)/);
  await call();
  other.close();
  t.equal(await controlPlane.stop(), 0);
});
