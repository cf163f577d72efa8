// What a caller or a peer sends must never end the program, nor cost other calls their connection.
import { Code, ConnectError } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { HealthService } from "@weightline/proto/health";
import {
  createGrpcChannel,
  createGrpcServer,
  type ErrorFacts,
  fromRpcError,
  route,
  WeightlineError,
} from "@weightline/runtime";
import t from "tap";
import { collectEscapedFaults } from "../../../test/support/escaped-faults.ts";

const faults = collectEscapedFaults(t);

type Answer = { version: string; status: string };
let answer: (header: Headers) => Answer = () => ({ version: "", status: "" });
const server = await createGrpcServer({
  routes: [route(HealthService, { getHealth: (_request, { requestHeader }) => answer(requestHeader) })],
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
});
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
t.teardown(async () => {
  channel.close();
  await server.stop(0);
});
const client = channel.client(HealthService);

async function failure(call: Promise<unknown>): Promise<WeightlineError> {
  try {
    await call;
  } catch (error) {
    return fromRpcError(error);
  }
  throw new Error("it did not fail");
}

t.test("binary metadata reaches the handler as base64, whatever its bytes are", async (t) => {
  const bytes = Buffer.from([0, 200, 255, 10]);
  let seen: string | null = "";
  answer = (header) => {
    seen = header.get("x-trace-bin");
    return { version: "1", status: "ok" };
  };
  const raw = new grpc.Client(`127.0.0.1:${server.port}`, grpc.credentials.createInsecure());
  t.teardown(() => raw.close());
  const metadata = new grpc.Metadata();
  metadata.set("x-trace-bin", bytes);
  const path = `/${HealthService.typeName}/${HealthService.method.getHealth.name}`;
  const same = (body: Buffer) => body;
  await new Promise<void>((resolve, reject) =>
    raw.makeUnaryRequest(path, same, same, Buffer.alloc(0), metadata, { deadline: Date.now() + 5000 }, (error) =>
      error === null ? resolve() : reject(error),
    ),
  );
  t.equal(seen, bytes.toString("base64"));
  t.match(await client.getHealth({}, { headers: { "x-trace-bin": bytes.toString("base64"), "x-plain": "p" } }), {
    version: "1",
  });
  t.equal(seen, bytes.toString("base64"), "our own client sends it so too");
});

t.test("an error of any length is told, shortened, and the connection lives on", async (t) => {
  const texts: Array<[string, string, ErrorFacts]> = [
    ["a long message", "x".repeat(1 << 20), {}],
    ["long facts", "x", { value: "v".repeat(1 << 20), field: "f", near: Array(1000).fill("n".repeat(1000)) }],
    ["wide characters", "\u{1f40c}".repeat(5000), { wayOut: "\u{6f22}".repeat(5000) }],
    ["half a surrogate pair", "cut \ud83d here", { value: "\ud83d", near: ["\udc0c"] }],
  ];
  for (const [what, message, facts] of texts) {
    answer = () => {
      throw new WeightlineError("NotFound", message, facts);
    };
    const seen = await failure(client.getHealth({}));
    t.equal(seen.code, "NotFound", what);
    t.ok(seen.message.startsWith(message.slice(0, 4).toWellFormed()), what);
    t.ok(
      Buffer.byteLength(seen.message) <= 1024 && Buffer.byteLength(seen.value) <= 384 && seen.near.length <= 5,
      what,
    );
    t.notMatch(`${seen.wayOut}${what === "wide characters" ? seen.message : ""}`, /\ufffd/, "no character is halved");
  }
  answer = () => {
    throw new ConnectError("c".repeat(100_000), Code.OutOfRange);
  };
  t.ok((await failure(client.getHealth({}))).message.endsWith("c…"));
});

t.test("an error's words arrive as they are, whatever is in them", async (t) => {
  for (const words of [
    " spaces around ",
    "100 % of it",
    "two\nlines\r",
    "\u{6f22}\u{1f40c}",
    "\0 and \x7f",
    "%41",
    "",
  ]) {
    answer = () => {
      throw new ConnectError(words, Code.OutOfRange);
    };
    t.equal((await failure(client.getHealth({}))).message, words, JSON.stringify(words));
  }
});

t.test("a handler that throws what is no error fails that call alone", async (t) => {
  answer = () => {
    throw undefined;
  };
  t.equal((await failure(client.getHealth({}))).code, "Internal");
  answer = () => {
    throw { code: 5, metadata: "not gRPC's" };
  };
  t.equal((await failure(client.getHealth({}))).code, "Internal");
  answer = () => ({ version: "2", status: "ok" });
  t.match(await client.getHealth({}), { version: "2" });
});

t.test("a peer's detail that cannot be decoded is passed over: its code and message count", async (t) => {
  const liar = new grpc.Server();
  t.teardown(() => liar.forceShutdown());
  const same = (body: Buffer) => body;
  let answered = 0;
  liar.addService(
    {
      getHealth: {
        path: `/${HealthService.typeName}/${HealthService.method.getHealth.name}`,
        requestStream: false,
        responseStream: false,
        requestSerialize: same,
        requestDeserialize: same,
        responseSerialize: same,
        responseDeserialize: same,
      },
    },
    {
      getHealth: (_call: unknown, callback: grpc.sendUnaryData<Buffer>) => {
        answered += 1;
        const metadata = new grpc.Metadata();
        metadata.set("weightline-error-bin", Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0x07, 1]));
        callback({ code: grpc.status.NOT_FOUND, details: "not here", metadata });
      },
    },
  );
  const port = await new Promise<number>((resolve, reject) =>
    liar.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    ),
  );
  const deceived = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port }] });
  t.teardown(() => deceived.close());
  t.match(await failure(deceived.client(HealthService).getHealth({}, { timeoutMs: 5000 })), {
    code: "NotFound",
    message: "not here",
    field: "",
  });
  t.equal(answered, 1);
});

t.test("nothing of all that escaped to where it would end the program", async (t) => {
  t.same(faults, []);
});
