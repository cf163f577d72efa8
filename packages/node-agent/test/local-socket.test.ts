// A local connection takes little at a time, and nothing while it is held.
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { native } from "@weightline/rdma-native";
import t, { type Test } from "tap";
import { LocalSocket } from "../src/local/local-socket.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-socket-`);
t.teardown(() => rmSync(folder, { recursive: true }));
let count = 0;

/** Both ends of a connection. */
async function pair(t: Test): Promise<{ far: Socket; near: LocalSocket }> {
  const path = `${folder}/${count++}`;
  const made = Promise.withResolvers<LocalSocket>();
  const listener = native.createLocalListener(path, (descriptor) => made.resolve(new LocalSocket(descriptor)));
  const far = connect(path);
  far.on("error", () => undefined);
  const near = await made.promise;
  t.teardown(() => {
    near.destroy();
    far.destroy();
    native.closeLocalListener(listener);
  });
  return { far, near };
}

const CALL = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";

t.test("a read takes two kilobytes at most, and all come in order", async (t) => {
  const { far, near } = await pair(t);
  const sent = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 251));
  const pieces: Buffer[] = [];
  near.on("data", (piece) => pieces.push(piece));
  far.end(sent);
  await once(near, "end");
  t.ok(Math.max(...pieces.map(({ length }) => length)) <= 2048);
  t.ok(Buffer.concat(pieces).equals(sent), "none is overwritten by the next");
});

t.test("while it is held nothing comes, whatever Node asks for; then all does", async (t) => {
  const { far, near } = await pair(t);
  let bytes = 0;
  near.on("data", (piece) => {
    bytes += piece.length;
  });
  near.hold(true);
  far.write(Buffer.alloc(50_000));
  near.pause();
  near.resume();
  await sleep(100);
  t.equal(bytes, 0);
  near.hold(false);
  while (bytes < 50_000) {
    await sleep(5);
  }
  near.pause();
  near.hold(true);
  near.hold(false);
  far.write(Buffer.alloc(50_000));
  await sleep(100);
  t.equal(bytes, 50_000, "that it is held no more does not end Node's own pause");
  near.resume();
  while (bytes < 100_000) {
    await sleep(5);
  }
  near.hold(true);
  near.destroy();
  near.hold(false);
  t.equal(near.descriptor, -1, "one that is closed may be held and let go");
});

t.test("of hundreds of calls that come at once, those of one read are requests", async (t) => {
  const { far, near } = await pair(t);
  let requests = 0;
  const http = createHttpServer((_request, response) => {
    requests += 1;
    near.hold(true);
    response.end();
  });
  http.emit("connection", near);
  far.write(CALL.repeat(500));
  far.resume();
  await sleep(100);
  const first = requests;
  t.ok(first > 0 && first <= Math.ceil(2048 / CALL.length), `${first} requests`);
  near.hold(false);
  await sleep(100);
  t.ok(requests > first && requests <= 3 * first + 1, `${requests} after it was let go once`);
});

t.test("answers that are not taken: it is read no more before hundreds of calls wait", async (t) => {
  const { far, near } = await pair(t);
  let requests = 0;
  const http = createHttpServer((_request, response) => {
    requests += 1;
    response.end(Buffer.alloc(1000));
  });
  http.emit("connection", near);
  const sent = 5000;
  far.pause();
  far.write(CALL.repeat(sent));
  let before = -1;
  while (requests !== before) {
    before = requests;
    await sleep(200);
  }
  // What the kernel holds of the answers, 32 KiB of them, and the calls of two reads.
  t.ok(requests < 400, `${requests} of ${sent}`);
  far.resume();
  while (requests < sent) {
    await sleep(20);
  }
  t.equal(requests, sent, "all are answered when they are taken");
});
