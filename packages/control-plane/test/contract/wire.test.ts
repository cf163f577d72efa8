// contract.md, the rules for every call: what is on the wire, by raw frames where no client library would send it.
import { createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Code } from "@connectrpc/connect";
import { computeSourceId } from "@weightline/proto";
import { NodeState } from "@weightline/proto/common";
import { FillNodesRequestSchema, NodeService } from "@weightline/proto/node";
import {
  GetMetadataResponseSchema,
  ListSourcesResponseSchema,
  PublishMetadataResponseSchema,
  SourceIdentitySchema,
  SourceStatus,
  UpdateStatusResponseSchema,
} from "@weightline/proto/p2p";
import { MAX_MESSAGE_BYTES } from "@weightline/runtime";
import { grpcFrame, openCall, openHttp2, rawUnary } from "../../../../test/support/http2-grpc.ts";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

const P2P = "/model_express.p2p.P2pService";
const PINGS = 120;
const PING_INTERVAL_MS = 20;

/** Fields that no version of the contract has, one of each wire type. */
function unknownFields(writer: BinaryWriter): BinaryWriter {
  return writer
    .tag(1000, WireType.Varint)
    .uint64(2n ** 64n - 1n)
    .tag(1001, WireType.LengthDelimited)
    .bytes(Buffer.from("from a newer client"))
    .tag(1002, WireType.Bit32)
    .fixed32(7)
    .tag(1003, WireType.Bit64)
    .fixed64(7n);
}

function message(write: (writer: BinaryWriter) => unknown): Uint8Array {
  const writer = new BinaryWriter();
  write(writer);
  return unknownFields(writer).finish();
}

function nested(writer: BinaryWriter, field: number, bytes: Uint8Array): void {
  writer.tag(field, WireType.LengthDelimited).bytes(bytes);
}

function text(writer: BinaryWriter, field: number, value: string): BinaryWriter {
  return writer.tag(field, WireType.LengthDelimited).string(value);
}

onEveryBackend(async (t, { p2p, channel, controlPlane, ready }) => {
  const connectRaw = async (t: { teardown(end: () => void): void }) => {
    const session = await openHttp2(controlPlane.port);
    t.teardown(() => session.destroy());
    return session;
  };

  t.test("unknown fields are tolerated in every request, at every depth, and are not hashed", async (t) => {
    const session = await connectRaw(t);
    const identity = message((writer) => {
      text(writer, 3, "newer");
      nested(
        writer,
        10,
        message((entry) => text(text(entry, 1, "__proto__"), 2, "X")),
      );
    });
    const worker = message((writer) => {
      nested(
        writer,
        11,
        message((entry) => text(text(entry, 1, "__proto__"), 2, "T")),
      );
      nested(
        writer,
        20,
        message((tensors) =>
          nested(
            tensors,
            1,
            message((tensor) => text(tensor, 1, "t")),
          ),
        ),
      );
    });
    const call = async (method: string, request: Uint8Array) => {
      const reply = await rawUnary(session, `${P2P}/${method}`, request);
      t.equal(reply.code, 0, `${method}: ${reply.message}`);
      return reply.messages[0] ?? Buffer.alloc(0);
    };
    const known = new BinaryWriter();
    text(known, 3, "newer");
    nested(known, 10, new BinaryWriter().tag(1, 2).string("__proto__").tag(2, 2).string("X").finish());
    const mxSourceId = computeSourceId(fromBinary(SourceIdentitySchema, known.finish()));
    const published = await call(
      "PublishMetadata",
      message((writer) => {
        nested(writer, 1, identity);
        nested(writer, 2, worker);
        text(writer, 3, "w");
      }),
    );
    t.match(fromBinary(PublishMetadataResponseSchema, published), { success: true, mxSourceId, workerId: "w" });
    const updated = await call(
      "UpdateStatus",
      message((writer) => {
        text(writer, 1, mxSourceId);
        writer.tag(3, WireType.Varint).int32(SourceStatus.READY);
        text(writer, 4, "w");
      }),
    );
    t.match(fromBinary(UpdateStatusResponseSchema, updated), { success: true });
    const listed = fromBinary(
      ListSourcesResponseSchema,
      await call(
        "ListSources",
        message((writer) => nested(writer, 1, identity)),
      ),
    );
    t.match(listed.instances, [{ mxSourceId, workerId: "w", modelName: "newer" }]);
    t.same(Object.entries(listed.instances[0]?.topology ?? {}), [["__proto__", "T"]], "no key of a map bites");
    const got = fromBinary(
      GetMetadataResponseSchema,
      await call(
        "GetMetadata",
        message((writer) => text(text(writer, 1, mxSourceId), 2, "w")),
      ),
    );
    t.match(got, { found: true, worker: { sourcePayload: { value: { tensors: [{ name: "t" }] } } } });
    t.same(Object.entries(got.identity?.extraParameters ?? {}), [["__proto__", "X"]]);
  });

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

  t.test("bearer tokens and other authorization are ignored while security is off", async (t) => {
    const session = await connectRaw(t);
    const { sourceId, workerId } = await ready({ revision: "bearer" });
    for (const authorization of [
      "Bearer ",
      "Bearer abc.def.ghi",
      `Bearer ${"x".repeat(4000)}`,
      "Basic Zm9v",
      "nonsense",
    ]) {
      const reply = await rawUnary(session, `${P2P}/ListSources`, Buffer.alloc(0), { authorization });
      t.equal(reply.code, 0, `${authorization.slice(0, 20)}: ${reply.message}`);
    }
    const headers = { authorization: "Bearer abc" };
    t.ok((await p2p.getMetadata({ mxSourceId: sourceId, workerId }, { headers })).found);
    t.ok((await p2p.updateStatus({ mxSourceId: sourceId, workerId, status: SourceStatus.READY }, { headers })).success);
    t.ok((await p2p.publishMetadata({ identity: identityOf(), workerId, worker: {} }, { headers })).success);
  });
});
