// The daemons' end, as a cluster sees it: real processes, and a call that is open for as long as the test wants.
import { once } from "node:events";
import { type ClientHttp2Stream, connect as connectHttp2 } from "node:http2";
import { connect as connectSocket } from "node:net";
import { create, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Serving } from "@weightline/proto/grpc-health";
import { HealthService } from "@weightline/proto/health";
import { ListNodesRequestSchema } from "@weightline/proto/node";
import { createGrpcChannel, parseAddress } from "@weightline/runtime";
import t from "tap";
import { createCluster, freePort } from "./support/cluster.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());

/** A call whose request is on its way: the program has its headers, and its message comes when the test says so. */
interface OpenCall {
  /** Sends the message; gives the call's gRPC status, or what became of its connection. */
  finish(): Promise<string>;
  /** How it ended without. */
  readonly ended: Promise<string>;
}

const GRPC_PREFIX_BYTES = 5;

async function openCall(address: string): Promise<OpenCall> {
  const session = connectHttp2(`http://${address}`);
  t.teardown(() => session.destroy());
  session.on("error", () => undefined);
  await once(session, "connect");
  const stream: ClientHttp2Stream = session.request({
    ":method": "POST",
    ":path": "/weightline.node.v1.NodeService/ListNodes",
    "content-type": "application/grpc",
    te: "trailers",
  });
  const ended = new Promise<string>((resolve) => {
    const status = (headers: Record<string, unknown>) => {
      if (headers["grpc-status"] !== undefined) {
        resolve(String(headers["grpc-status"]));
      }
    };
    stream.on("response", status).on("trailers", status);
    stream.on("error", (error: NodeJS.ErrnoException) => resolve(String(error.code)));
    stream.on("close", () => resolve(`closed with ${stream.rstCode}`));
  });
  stream.resume();
  // Frames are taken in order: whoever answers the ping has the headers.
  await new Promise<void>((resolve) => session.ping(() => resolve()));
  return {
    ended,
    finish() {
      const message = toBinary(ListNodesRequestSchema, create(ListNodesRequestSchema));
      const prefix = Buffer.alloc(GRPC_PREFIX_BYTES);
      prefix.writeUInt32BE(message.length, 1);
      stream.end(Buffer.concat([prefix, message]));
      return ended;
    },
  };
}

const readyz = (port: number) => fetch(`http://127.0.0.1:${port}/readyz`);

/** Whether something listens there. */
async function listens(address: string): Promise<boolean> {
  const { host, port } = parseAddress(address, "address");
  const socket = connectSocket(port, host);
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

t.test("SIGTERM: not serving first, what runs ends, streams end by their signal, exit 0", async (t) => {
  const metricsPort = await freePort();
  const program = await cluster.startControlPlane([
    "--metrics-port",
    String(metricsPort),
    "--drain-timeout",
    "2m",
    "--host",
    "127.0.0.1",
  ]);
  const address = cluster.controlPlane();
  const channel = createGrpcChannel({ addresses: [parseAddress(address, "address")] });
  t.teardown(() => channel.close());
  t.equal((await readyz(metricsPort)).status, 200);
  t.match(await channel.client(HealthService).getHealth({}), { status: "ok" });
  const seen: Serving[] = [];
  const first = Promise.withResolvers<void>();
  const watching = (async () => {
    for await (const { status } of channel.client(Health).watch({ service: "" }, { timeoutMs: 100_000 })) {
      seen.push(status);
      first.resolve();
    }
    return undefined;
  })().catch((error: unknown) => ConnectError.from(error));
  await first.promise;
  const call = await openCall(address);

  program.kill("SIGTERM");
  await program.waitFor(/"event":"draining","timeout_ms":120000/);
  t.match(await watching, { code: Code.Unavailable }, "a stream ends by its signal");
  t.same(seen, [Serving.SERVING, Serving.NOT_SERVING], "and was told before");
  const draining = await readyz(metricsPort);
  t.equal(draining.status, 503);
  t.match(await draining.json(), { ready: false, reasons: ["draining"] });
  const metrics = await (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text();
  t.match(metrics, /^weightline_ready 0$/m, "it can be scraped to the end");
  t.equal(await listens(address), false, "nothing new is taken");
  t.equal(await call.finish(), "0", "a call that ran has its answer");
  t.equal(await program.exited, 0);
  t.notMatch(program.output(), /drain-cut-short|unclean-stop/);
});

t.test("the drain's deadline: a call that takes longer is cut, and told so; exit 0", async (t) => {
  const program = await cluster.startControlPlane(["--drain-timeout", "100ms"]);
  const call = await openCall(cluster.controlPlane());
  program.kill("SIGTERM");
  t.not(await call.ended, "0");
  t.equal(await program.exited, 0);
  t.match(program.output(), /"event":"drain-cut-short","timeout_ms":100/);
});

t.test("a second signal cuts it short: exit 130", async (t) => {
  const program = await cluster.startControlPlane(["--drain-timeout", "10m"]);
  const call = await openCall(cluster.controlPlane());
  program.kill("SIGTERM");
  await program.waitFor(/"event":"draining","timeout_ms":600000/);
  program.kill("SIGINT");
  t.equal(await program.exited, 130);
  t.not(await call.ended, "0");
});

t.test("nothing runs: it ends at once, whatever the drain's deadline", async (t) => {
  const program = await cluster.startControlPlane(["--drain-timeout", "10m"]);
  program.kill("SIGTERM");
  t.equal(await program.exited, 0);
});
