import * as grpc from "@grpc/grpc-js";

/** What `Headers` takes. */
export type HeaderInit = ConstructorParameters<typeof Headers>[0];

const isBinary = (key: string) => key.endsWith("-bin");

/** Headers as gRPC metadata; values of names that end in `-bin` are bytes, which Connect has as base64. */
export function toMetadata(headers: HeaderInit): grpc.Metadata {
  const metadata = new grpc.Metadata();
  new Headers(headers).forEach((value, key) => {
    for (const part of isBinary(key) ? value.split(",") : []) {
      metadata.add(key, Buffer.from(part.trim(), "base64"));
    }
    if (!isBinary(key)) {
      metadata.set(key, value);
    }
  });
  return metadata;
}
