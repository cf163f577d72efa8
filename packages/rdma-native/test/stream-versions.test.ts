// Which version of the stream a parent chooses, or that there is none: crafted openings of older and newer children.
import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { native, type StreamTicket } from "@weightline/rdma-native";
import t from "tap";
import { createTestMover, loadHolding, newTicket, removeStore, writeModel } from "./native-helpers.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-versions-`);
const mover = createTestMover();
t.teardown(async () => {
  mover.close();
  await removeStore(mover.store);
  rmSync(folder, { recursive: true });
});
writeModel(`${folder}/m.safetensors`, 100_000);

const ANSWER_BYTES = 72;
const { minStreamVersion, maxStreamVersion } = native.buildInfo();

/** Opens as a child that speaks `least` to `most`; gives the version that the parent chose, and whether it went on. */
async function open(least: number, most: number): Promise<{ version: number; served: boolean }> {
  const { id } = loaded;
  const ticket: StreamTicket = newTicket();
  await mover.order({ kind: "grant", holdingId: id, ticket, ttlMs: 10_000, child: "child" });
  const hello = Buffer.alloc(56);
  hello.write("WLST");
  hello.writeUInt16LE(least, 4);
  hello.writeUInt16LE(most, 6);
  hello.set(ticket.id, 8);
  hello.set(randomBytes(32), 24);
  const [host, port] = mover.address.split(":");
  const socket = connect(Number(port), host);
  socket.on("error", () => undefined);
  let received = Buffer.alloc(0);
  socket.on("data", (data) => {
    received = Buffer.concat([received, data]);
  });
  const closed = once(socket, "close");
  socket.write(hello);
  while (received.length < ANSWER_BYTES) {
    await once(socket, "data");
  }
  const answer = received.subarray(0, ANSWER_BYTES);
  const version = answer.readUInt16LE(4);
  const mac = createHmac("sha256", ticket.secret)
    .update("child")
    .update(hello)
    .update(answer.subarray(4, 6))
    .update(answer.subarray(8, 40))
    .digest();
  const getLayout = Buffer.alloc(48);
  getLayout.writeUInt8(1, 0);
  socket.write(Buffer.concat([mac, getLayout]));
  await Promise.race([closed, once(socket, "data")]);
  const served = received.length > ANSWER_BYTES;
  socket.destroy();
  return { version, served };
}

const loaded = await loadHolding(mover, `${folder}/m.safetensors`);

t.test("the highest version that both speak", async (t) => {
  t.same(await open(minStreamVersion, maxStreamVersion), { version: maxStreamVersion, served: true });
  t.same(
    await open(minStreamVersion, maxStreamVersion + 1),
    { version: maxStreamVersion, served: true },
    "a newer child",
  );
  t.same(await open(0, maxStreamVersion + 7), { version: maxStreamVersion, served: true });
});

t.test("no common version: 0 is answered, and nothing is served", async (t) => {
  t.same(await open(maxStreamVersion + 1, maxStreamVersion + 2), { version: 0, served: false }, "only newer");
  t.same(await open(0, minStreamVersion - 1), { version: 0, served: false }, "only older");
  t.same(await open(maxStreamVersion, minStreamVersion - 1), { version: 0, served: false }, "turned round");
});
