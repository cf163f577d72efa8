// Right calls of gRPC services, and the same with changed messages, framing, headers and paths.
import type { ClientHttp2Session } from "node:http2";
import { create, type DescMessage, type DescService, toBinary, toJsonString } from "@bufbuild/protobuf";
import { mutateBytes, type Random } from "./mutation.ts";

/** A right request of one method. */
export interface Base {
  /** "package.Service". */
  service: string;
  method: string;
  message: Buffer;
  json: string;
  /** The replies are a stream. */
  stream: boolean;
}

/** Right requests by the names of a service's methods. */
export function bases(service: DescService, requests: Record<string, ReadonlyArray<Record<string, unknown>>>): Base[] {
  return Object.entries(requests).flatMap(([method, values]) => {
    const found = service.methods.find(({ name }) => name === method);
    if (found === undefined) {
      throw new Error(`${service.typeName} has no ${method}`);
    }
    const input: DescMessage = found.input;
    return values.map((value) => {
      const message = create(input, value);
      return {
        service: service.typeName,
        method,
        stream: found.methodKind === "server_streaming",
        message: Buffer.from(toBinary(input, message)),
        json: toJsonString(input, message),
      };
    });
  });
}

/** The five bytes before a message, wrong in one of eight. */
export function envelope(random: Random, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(random.oneIn(8) ? random.below(256) : 0);
  head.writeUInt32BE(random.oneIn(8) ? random.below(2 ** 32) : body.length, 1);
  return Buffer.concat([head, body]);
}

/** One call as it is sent. */
export interface ChangedCall {
  base: Base;
  headers: Record<string, string>;
  body: Buffer;
}

/** A call of one of `all`, changed somewhere. */
export function changedCall(all: readonly Base[], random: Random): ChangedCall {
  const base = random.pick(all);
  const body = random.oneIn(10)
    ? base.message
    : mutateBytes(base.message.length > 0 ? base.message : Buffer.from([0]), random);
  return {
    base,
    headers: {
      ":method": random.oneIn(40) ? "GET" : "POST",
      ":path": `/${base.service}/${random.oneIn(30) ? "No such\u00e9".slice(0, random.below(7)) : base.method}`,
      "content-type": random.oneIn(30)
        ? random.pick(["application/json", "application/grpc+thrift", ""])
        : "application/grpc",
      te: "trailers",
      ...(random.oneIn(4)
        ? { "grpc-timeout": random.pick(["50m", "0n", "99999999H", "-1S", "x"]) }
        : { "grpc-timeout": "2S" }),
      ...(random.oneIn(20) ? { "grpc-encoding": random.pick(["gzip", "nonsense", "identity"]) } : {}),
      ...(random.oneIn(20) ? { "x-meta-bin": random.pick(["!!!", "AAAA", "="]) } : {}),
    },
    body: random.oneIn(12) ? mutateBytes(envelope(random, body), random) : envelope(random, body),
  };
}

/** Makes a call. Gives "grpc CODE MESSAGE", "http STATUS" or "reset CODE"; rejects when it has not ended by `hangMs`. */
export function makeCall(
  session: ClientHttp2Session,
  { base, headers, body }: ChangedCall,
  hangMs: number,
): Promise<string> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`a call of ${base.method} did not end within ${hangMs} ms`)),
      hangMs,
    );
    const stream = session.request(headers);
    let outcome = "";
    stream.on("response", (answer) => {
      const status = answer[":status"];
      outcome = status === 200 ? outcome : `http ${status}`;
      outcome =
        answer["grpc-status"] === undefined ? outcome : `grpc ${answer["grpc-status"]} ${answer["grpc-message"] ?? ""}`;
    });
    stream.on("trailers", (trailers) => {
      outcome = `grpc ${trailers["grpc-status"]} ${trailers["grpc-message"] ?? ""}`;
    });
    stream.on("error", () => undefined);
    stream.on("data", () => undefined);
    stream.once("close", () => {
      clearTimeout(timer);
      resolve(outcome === "" ? `reset ${stream.rstCode}` : outcome);
    });
    stream.end(body);
  });
}
