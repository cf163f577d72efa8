// contract.md, the rules for every call: what is on the wire, by raw frames where no client library would send it.
import { fromBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { computeSourceId } from "@weightline/proto";
import {
  GetMetadataResponseSchema,
  ListSourcesResponseSchema,
  PublishMetadataResponseSchema,
  SourceIdentitySchema,
  SourceStatus,
  UpdateStatusResponseSchema,
} from "@weightline/proto/p2p";
import { openHttp2, rawUnary } from "../../../../test/support/http2-grpc.ts";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

const P2P = "/model_express.p2p.P2pService";

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

onEveryBackend(async (t, { p2p, controlPlane, ready }) => {
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
