import * as grpc from "@grpc/grpc-js";

/** What `Headers` takes. */
export type HeaderInit = ConstructorParameters<typeof Headers>[0];

const isBinary = (key: string) => key.endsWith("-bin");

/** gRPC metadata as headers; values of names that end in `-bin` are bytes, and become base64 as in Connect. */
export function toHeaders(metadata: grpc.Metadata): Headers {
  const headers = new Headers();
  for (const key of Object.keys(metadata.getMap())) {
    for (const value of metadata.get(key)) {
      headers.append(key, typeof value === "string" ? value : value.toString("base64"));
    }
  }
  return headers;
}

/** Headers as gRPC metadata, the other way round. */
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
