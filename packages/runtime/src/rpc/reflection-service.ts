import { type DescEnum, type DescFile, type DescMessage, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { ServerReflection, type ServerReflectionRequest } from "@weightline/proto/grpc-reflection-v1";
import { ServerReflection as ServerReflectionV1Alpha } from "@weightline/proto/grpc-reflection-v1alpha";
import { route, type ServiceRoute } from "./service-route.ts";

/** A file and all that it imports, each before its own imports. */
function withImports(file: DescFile): DescFile[] {
  const importsFirst = new Set<DescFile>();
  const visit = (known: DescFile) => {
    if (!importsFirst.has(known)) {
      known.dependencies.forEach(visit);
      importsFirst.add(known);
    }
  };
  visit(file);
  return [...importsFirst].reverse();
}

function* symbolsOfEnum(descriptor: DescEnum): Generator<string> {
  yield descriptor.typeName;
  // A value's full name is beside its enum's, not below it.
  const scope = descriptor.typeName.slice(0, -descriptor.name.length);
  yield* descriptor.values.map(({ name }) => scope + name);
}

function* symbolsOfMessage(descriptor: DescMessage): Generator<string> {
  yield descriptor.typeName;
  yield* [...descriptor.fields, ...descriptor.oneofs].map(({ name }) => `${descriptor.typeName}.${name}`);
  for (const nested of descriptor.nestedEnums) {
    yield* symbolsOfEnum(nested);
  }
  for (const nested of descriptor.nestedMessages) {
    yield* symbolsOfMessage(nested);
  }
}

/** Full names of everything that a file declares. */
function* symbolsOf(file: DescFile): Generator<string> {
  for (const service of file.services) {
    yield service.typeName;
    yield* service.methods.map(({ name }) => `${service.typeName}.${name}`);
  }
  for (const message of file.messages) {
    yield* symbolsOfMessage(message);
  }
  for (const descriptor of file.enums) {
    yield* symbolsOfEnum(descriptor);
  }
}

type Answer = (request: Pick<ServerReflectionRequest, "messageRequest">) => { case: string; value: object };

function createAnswer(services: readonly DescService[]): Answer {
  const files = new Set(services.flatMap(({ file }) => withImports(file)));
  // The name that a .proto file is imported by; descriptors have it without its ending.
  const byName = new Map([...files].map((file) => [file.proto.name, file]));
  const bySymbol = new Map([...files].flatMap((file) => [...symbolsOf(file)].map((symbol) => [symbol, file])));
  const messages = new Set([...files].flatMap((file) => file.messages.map(({ typeName }) => typeName)));

  const notFound = (words: string) => ({
    case: "errorResponse",
    value: { errorCode: Code.NotFound, errorMessage: words },
  });
  const found = (file: DescFile | undefined, words: string) =>
    file === undefined
      ? notFound(words)
      : {
          case: "fileDescriptorResponse",
          value: {
            fileDescriptorProto: withImports(file).map(({ proto }) => toBinary(FileDescriptorProtoSchema, proto)),
          },
        };

  return ({ messageRequest }) => {
    switch (messageRequest.case) {
      case "listServices":
        return {
          case: "listServicesResponse",
          value: { service: services.map(({ typeName }) => ({ name: typeName })) },
        };
      case "fileByFilename":
        return found(byName.get(messageRequest.value), `file ${messageRequest.value} is not known here`);
      case "fileContainingSymbol":
        return found(bySymbol.get(messageRequest.value), `symbol ${messageRequest.value} is not known here`);
      case "allExtensionNumbersOfType":
        return messages.has(messageRequest.value)
          ? {
              case: "allExtensionNumbersResponse",
              value: { baseTypeName: messageRequest.value, extensionNumber: [] },
            }
          : notFound(`message ${messageRequest.value} is not known here`);
      case "fileContainingExtension":
        return notFound("nothing is extended here");
      default:
        return {
          case: "errorResponse",
          value: { errorCode: Code.InvalidArgument, errorMessage: "the request asks for nothing" },
        };
    }
  };
}

/**
 * The routes with gRPC's server reflection beside them, in both versions that tools ask for: it lists every service of
 * `routes` and itself.
 */
export function withReflection(routes: readonly ServiceRoute[]): readonly ServiceRoute[] {
  const answer = createAnswer([...routes.map(({ service }) => service), ServerReflection, ServerReflectionV1Alpha]);
  const implementation = {
    async *serverReflectionInfo(requests: AsyncIterable<ServerReflectionRequest>) {
      for await (const request of requests) {
        yield { validHost: request.host, originalRequest: request, messageResponse: answer(request) };
      }
    },
  };
  // Both versions have the same messages under two names.
  return [
    ...routes,
    route(ServerReflection, implementation as never),
    route(ServerReflectionV1Alpha, implementation as never),
  ];
}
