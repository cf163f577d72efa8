// grpc.reflection.v1 and v1alpha: what tools ask, on one stream, and what they get. Whole tools are tried in test/reflection.test.ts.
import { create, createFileRegistry, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type FileDescriptorProto, FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { ServerReflectionRequestSchema, ServerReflectionResponseSchema } from "@weightline/proto/grpc-reflection-v1";
import { NodeService } from "@weightline/proto/node";
import { createGrpcServer, createHealthStatus, route, withReflection } from "@weightline/runtime";
import t from "tap";
import { openHttp2, rawCall } from "../../../test/support/http2-grpc.ts";

type Ask = NonNullable<MessageInitShape<typeof ServerReflectionRequestSchema>["messageRequest"]>;

const server = await createGrpcServer({
  routes: withReflection([route(NodeService, {}), createHealthStatus([]).route]),
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
});
const session = await openHttp2(server.port);
t.teardown(async () => {
  session.destroy();
  await server.stop(0);
});

async function ask(version: string, ...questions: Ask[]) {
  const requests = questions.map((messageRequest) =>
    toBinary(
      ServerReflectionRequestSchema,
      create(ServerReflectionRequestSchema, { host: "here", messageRequest: messageRequest as never }),
    ),
  );
  const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`;
  const reply = await rawCall(session, path, requests);
  if (reply.code !== 0 || reply.messages.length !== questions.length) {
    throw new Error(`${reply.messages.length} answers, code ${reply.code}: ${reply.message}`);
  }
  // The versions differ in their names alone.
  return reply.messages.map((bytes) => fromBinary(ServerReflectionResponseSchema, bytes));
}

const SERVICES = [
  "weightline.node.v1.NodeService",
  "grpc.health.v1.Health",
  "grpc.reflection.v1.ServerReflection",
  "grpc.reflection.v1alpha.ServerReflection",
];

for (const version of ["v1", "v1alpha"]) {
  t.test(`${version}: every served service is listed, and its request comes back`, async (t) => {
    const [listed] = await ask(version, { case: "listServices", value: "" });
    t.match(listed, { validHost: "here", originalRequest: { messageRequest: { case: "listServices" } } });
    t.strictSame(
      listed?.messageResponse.case === "listServicesResponse"
        ? listed.messageResponse.value.service.map(({ name }) => name)
        : listed?.messageResponse,
      SERVICES,
    );
  });

  t.test(`${version}: the file of each kind of symbol, with all that it imports`, async (t) => {
    const symbols = [
      ...SERVICES,
      "weightline.node.v1.NodeService.Announce",
      "weightline.node.v1.AnnounceRequest",
      "weightline.node.v1.AnnounceRequest.boot_id",
      "weightline.node.v1.AnnounceVerdict",
      "weightline.node.v1.ANNOUNCE_VERDICT_STALE",
      "grpc.health.v1.HealthCheckResponse.ServingStatus",
      "grpc.health.v1.HealthCheckResponse.SERVING",
      "model_express.p2p.WorkerMetadata.source_payload",
      "model_express.p2p.SourceIdentity.extra_parameters",
    ];
    const answers = await ask(version, ...symbols.map((value) => ({ case: "fileContainingSymbol" as const, value })));
    for (const [i, answer] of answers.entries()) {
      t.equal(answer.messageResponse.case, "fileDescriptorResponse", String(symbols[i]));
      const { fileDescriptorProto } = answer.messageResponse.value as { fileDescriptorProto: Uint8Array[] };
      const file: FileDescriptorProto[] = fileDescriptorProto.map((bytes) =>
        fromBinary(FileDescriptorProtoSchema, bytes),
      );
      // It throws where an import is missing.
      createFileRegistry(create(FileDescriptorSetSchema, { file: file.toReversed() }));
      t.ok(symbols[i]?.startsWith(`${file[0]?.package}.`), `${symbols[i]} is in the first of ${file.length}`);
    }
  });
}

t.test("files by the names that they are imported by", async (t) => {
  const names = ["weightline/node/v1/node.proto", "model_express/p2p.proto", "weightline/common/v1/common.proto"];
  const answers = await ask("v1", ...names.map((value) => ({ case: "fileByFilename" as const, value })));
  for (const [i, { messageResponse }] of answers.entries()) {
    const [first] = (messageResponse.value as { fileDescriptorProto: Uint8Array[] }).fileDescriptorProto;
    t.equal(fromBinary(FileDescriptorProtoSchema, first ?? new Uint8Array()).name, names[i]);
  }
});

t.test("what is not there is NOT_FOUND, in words, and the stream goes on", async (t) => {
  const answers = await ask(
    "v1",
    { case: "fileContainingSymbol", value: "no.such.Service" },
    { case: "fileContainingSymbol", value: "__proto__" },
    { case: "fileContainingSymbol", value: "weightline.peer.v1.PeerService" },
    { case: "fileByFilename", value: "weightline/node/v1/node" },
    { case: "allExtensionNumbersOfType", value: "no.such.Message" },
    {
      case: "fileContainingExtension",
      value: { containingType: "weightline.node.v1.Node", extensionNumber: 1 } as never,
    },
    { case: "allExtensionNumbersOfType", value: "weightline.node.v1.Node" },
  );
  for (const { messageResponse } of answers.slice(0, 6)) {
    t.match(messageResponse, { case: "errorResponse", value: { errorCode: Code.NotFound, errorMessage: /here/ } });
  }
  t.match(answers[6]?.messageResponse, {
    case: "allExtensionNumbersResponse",
    value: { baseTypeName: "weightline.node.v1.Node", extensionNumber: [] },
  });
  const nothing = await rawCall(session, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", [
    Buffer.alloc(0),
  ]);
  t.match(fromBinary(ServerReflectionResponseSchema, nothing.messages[0] ?? Buffer.alloc(0)).messageResponse, {
    case: "errorResponse",
    value: { errorCode: Code.InvalidArgument },
  });
});
