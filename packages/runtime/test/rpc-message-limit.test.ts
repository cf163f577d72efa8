// contract.md: 100 MiB both ways. Requests are tried at the control plane's contract tests, replies here.
import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { GetHealthRequestSchema, HealthService } from "@weightline/proto/health";
import { createGrpcChannel, createGrpcServer, MAX_MESSAGE_BYTES, route } from "@weightline/runtime";
import t from "tap";

/** Tag and length of a field of this size. */
const FIELD_HEAD_BYTES = 5;
let replyBytes = 0;
/** Values of unknown fields that the last request came with. */
let unknownCount = -1;
const service = route(HealthService, {
  getHealth(request) {
    unknownCount = request.$unknown?.length ?? 0;
    return { version: "v".repeat(replyBytes - FIELD_HEAD_BYTES), status: "" };
  },
});
const server = await createGrpcServer({ routes: [service], bind: ["127.0.0.1"], port: 0, portFlag: "--port" });
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }], defaultTimeoutMs: 60_000 });
t.teardown(async () => {
  channel.close();
  await server.stop(0);
});
const client = channel.client(HealthService);

t.test("a reply of 100 MiB arrives, one byte more is RESOURCE_EXHAUSTED, and the connection goes on", async (t) => {
  replyBytes = MAX_MESSAGE_BYTES;
  t.equal((await client.getHealth({})).version.length, 100 * 1024 * 1024 - FIELD_HEAD_BYTES);
  replyBytes = MAX_MESSAGE_BYTES + 1;
  await t.rejects(client.getHealth({}), { code: Code.ResourceExhausted });
  replyBytes = FIELD_HEAD_BYTES + 1;
  t.equal((await client.getHealth({})).version, "v");
});

t.test("what a request has of unknown fields is kept, and let go where it is too much", async (t) => {
  const ask = async (count: number) => {
    const request = create(GetHealthRequestSchema);
    // A tag and a varint each: of a field that no version has.
    request.$unknown = Array.from({ length: count }, () => ({ no: 15, wireType: 0, data: Uint8Array.of(1) }));
    await client.getHealth(request);
    return unknownCount;
  };
  t.equal(await ask(1), 1);
  t.equal(await ask(10_000), 10_000);
  t.equal(await ask(10_001), 0);
});
