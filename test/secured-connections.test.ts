// Connections of a secured port: limits hold before the handshake, old ones are asked to come again, a stop ends them all.
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import t from "tap";
import type { HostilePeer } from "./support/hostile-peer.ts";
import { FRAME } from "./support/http2-frames.ts";
import { EMPTY, GET_HEALTH, isServed, limited, overTls } from "./support/limited-server.ts";
import { until } from "./support/processes.ts";

const TLS = overTls(t);
const OK = { status: 0 };

/** What a client says first in TLS. */
async function clientHello(): Promise<Buffer> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const client = connectTls({ port, host: "127.0.0.1", ALPNProtocols: ["h2"] }).on("error", () => undefined);
  const [socket] = (await once(server, "connection")) as [Socket];
  const [hello] = (await once(socket, "data")) as [Buffer];
  client.destroy();
  socket.destroy();
  server.close();
  return hello;
}

t.test("a TLS handshake that never ends is a silent connection; who has ended it is not", async (t) => {
  const { server, reasons, peer } = await limited(t, TLS, { silentConnectionMs: 3000 });
  const hello = await clientHello();
  t.ok(hello.length > 200, "more bytes than a greeting of HTTP/2 has");
  const greeting = await peer();
  const dumb = await peer({ silent: true, tls: undefined });
  const begun = await peer({ silent: true, tls: undefined });
  begun.send(hello);
  const dripping = await peer({ silent: true, tls: undefined });
  dripping.send(hello.subarray(0, 100));
  await until("the server's part of the handshake", () => begun.socket.bytesRead > 0);
  const drip = setInterval(() => dripping.send(hello.subarray(100, 101)), 100);
  t.teardown(() => clearInterval(drip));
  t.equal(server.connections(), 4);
  for (const one of [dumb, begun, dripping]) {
    await one.ended();
  }
  t.same(reasons, Array(3).fill(["silent-connection", "127.0.0.1"]));
  t.ok(await isServed(greeting));
  t.equal(server.connections(), 1);
});

t.test("connections count before their handshake: the longest idle makes room for the next", async (t) => {
  const { server, reasons, peer } = await limited(t, TLS, { connectionsPerAddressCount: 3 });
  const hello = await clientHello();
  const begun: HostilePeer[] = [];
  for (let i = 0; i < 3; i++) {
    const one = await peer({ silent: true, tls: undefined });
    one.send(hello);
    begun.push(one);
  }
  await until("all handshakes have begun", () => begun.every(({ socket }) => socket.bytesRead > 0));
  t.equal(server.connections(), 3);
  const first = await peer();
  t.ok(await isServed(first));
  await begun[0]?.ended();
  t.same(reasons, [["connections-per-address", "127.0.0.1"]]);
  t.same(
    begun.map((one) => one.closed()),
    [true, false, false],
  );
  t.equal(server.connections(), 3);
  first.socket.destroy();
  await until("the end of TLS is the end of its connection", () => server.connections() === 2);
});

t.test("a server that stops ends the handshakes that run, before the last call is over", async (t) => {
  const { server, peer, letGo } = await limited(t, TLS, { silentConnectionMs: 600_000 }, { held: true });
  const busy = await peer();
  const call = busy.call(GET_HEALTH, EMPTY);
  const begun = await peer({ silent: true, tls: undefined });
  begun.send(await clientHello());
  const silent = await peer({ silent: true, tls: undefined });
  await until("the server's part of the handshake", () => begun.socket.bytesRead > 0);
  const stopped = server.stop(600_000);
  await begun.ended();
  await silent.ended();
  t.notOk(busy.closed());
  letGo();
  t.match(await busy.end(call), OK);
  await stopped;
  t.equal(server.connections(), 0);
});

t.test(
  "a connection that is old enough is told to come again; its call ends well, also when the server stops",
  async (t) => {
    const security = TLS.security === undefined ? undefined : { ...TLS.security, maxConnectionAgeMs: 200 };
    const { server, peer, letGo } = await limited(t, { ...TLS, security }, {}, { held: true });
    const one = await peer();
    const call = one.call(GET_HEALTH, EMPTY);
    await one.got(FRAME.goaway, 0);
    t.notOk(one.closed(), "its call runs");
    const stopped = server.stop(60_000);
    const late = Promise.race([stopped.then(() => "stopped"), new Promise((resolve) => setImmediate(resolve))]);
    t.not(await late, "stopped");
    letGo();
    t.match(await one.end(call), OK);
    await one.ended();
    await stopped;
  },
);
