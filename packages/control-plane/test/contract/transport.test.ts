// contract.md, the rules for every call: messages at their limit, pings, headers of streams. What holds them is below every backend.
import { createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Code } from "@connectrpc/connect";
import { NodeState } from "@weightline/proto/common";
import { FillNodesRequestSchema, NodeService } from "@weightline/proto/node";
import { ListSourcesResponseSchema, SourceIdentitySchema } from "@weightline/proto/p2p";
import { MAX_MESSAGE_BYTES } from "@weightline/runtime";
import { grpcFrame, openCall, openHttp2, rawUnary } from "../../../../test/support/http2-grpc.ts";
import { identityOf } from "./identity.ts";
import { onMemory } from "./under-contract.ts";

const P2P = "/model_express.p2p.P2pService";
const PINGS = 120;
const PING_INTERVAL_MS = 20;

function nested(writer: BinaryWriter, field: number, bytes: Uint8Array): void {
  writer.tag(field, WireType.LengthDelimited).bytes(bytes);
}

onMemory(async (t, { channel, controlPlane, ready }) => {
  const connectRaw = async (t: { teardown(end: () => void): void }) => {
    const session = await openHttp2(controlPlane.port);
    t.teardown(() => session.destroy());
    return session;
  };

  t.test(
    "a request of 100 MiB is taken, one byte more is RESOURCE_EXHAUSTED or OUT_OF_RANGE, and the connection goes on",
    async (t) => {
      const session = await connectRaw(t);
      const identity = identityOf({ revision: "limit" });
      const { workerId } = await ready({ revision: "limit" });
      const head = new BinaryWriter();
      nested(head, 1, toBinary(SourceIdentitySchema, identity));
      const used = head.finish();
      const padded = (total: number) => {
        // Tag of field 1001 and a length of four bytes.
        const size = total - used.length - 6;
        return Buffer.concat([
          used,
          new BinaryWriter()
            .uint32((1001 << 3) | 2)
            .uint32(size)
            .finish(),
          Buffer.alloc(size),
        ]);
      };
      const at = padded(MAX_MESSAGE_BYTES);
      t.equal(at.length, 100 * 1024 * 1024);
      const taken = await rawUnary(session, `${P2P}/ListSources`, at);
      t.equal(taken.code, 0, taken.message);
      t.match(fromBinary(ListSourcesResponseSchema, taken.messages[0] ?? Buffer.alloc(0)).instances, [{ workerId }]);
      const above = await rawUnary(session, `${P2P}/ListSources`, padded(MAX_MESSAGE_BYTES + 1));
      t.ok(above.code === Code.ResourceExhausted || above.code === Code.OutOfRange, `${above.code}: ${above.message}`);
      t.equal((await rawUnary(session, `${P2P}/ListSources`, used)).code, 0);
    },
  );

  t.test(
    "field case 31: pings without a call are all answered, no GOAWAY, and ListSources works on the connection",
    async (t) => {
      const session = await connectRaw(t);
      let goaways = 0;
      session.on("goaway", () => {
        goaways += 1;
      });
      const answers: Array<Promise<number>> = [];
      for (let i = 0; i < PINGS; i++) {
        answers.push(
          new Promise((resolve, reject) => {
            session.ping(Buffer.alloc(8, i), (error, _ms, payload) =>
              error === null ? resolve(payload[0] ?? -1) : reject(error),
            );
          }),
        );
        await sleep(PING_INTERVAL_MS);
      }
      t.same(
        await Promise.all(answers),
        Array.from({ length: PINGS }, (_, i) => i),
        "each with its own payload",
      );
      const reply = await rawUnary(session, `${P2P}/ListSources`, Buffer.alloc(0));
      t.equal(reply.code, 0, reply.message);
      t.equal(goaways, 0);
      t.notOk(session.closed);
    },
  );

  t.test("pings beside an open stream are answered too", async (t) => {
    const session = await connectRaw(t);
    const stream = openCall(session, "/grpc.health.v1.Health/Watch");
    stream.end(grpcFrame(Buffer.alloc(0)));
    await new Promise((resolve) => stream.once("data", resolve));
    for (let i = 0; i < PINGS; i++) {
      await new Promise<void>((resolve, reject) =>
        session.ping((error) => (error === null ? resolve() : reject(error))),
      );
    }
    t.notOk(stream.closed, "the stream goes on");
    stream.close();
  });

  t.test("a stream's response headers come at once, before its first message", async (t) => {
    const sockets: Socket[] = [];
    const silent = createServer((socket) => sockets.push(socket));
    await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
    t.teardown(() => {
      for (const socket of sockets) {
        socket.destroy();
      }
      silent.close();
    });
    await channel.client(NodeService).announce({
      node: "mute",
      epoch: 1n,
      sequence: 1n,
      bootId: "b",
      storeId: "mute",
      address: `127.0.0.1:${(silent.address() as { port: number }).port}`,
      ttlMs: 60_000,
      state: NodeState.READY,
      holdings: {},
    });
    const session = await connectRaw(t);
    const stream = openCall(session, "/weightline.node.v1.NodeService/FillNodes");
    let items = 0;
    stream.on("data", () => {
      items += 1;
    });
    const answered = new Promise<Record<string, unknown>>((resolve) => stream.once("response", resolve));
    stream.end(
      grpcFrame(
        toBinary(FillNodesRequestSchema, create(FillNodesRequestSchema, { nodes: ["mute"], identity: identityOf() })),
      ),
    );
    t.match(await answered, { ":status": 200, "content-type": "application/grpc+proto" });
    t.equal(items, 0, "nothing has come yet: the node is silent");
    stream.close();
  });
});
