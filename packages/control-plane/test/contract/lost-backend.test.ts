// contract.md, "backend lost": the p2p service over a directory whose backend does not answer.
import { Code } from "@connectrpc/connect";
import type { Directory } from "@weightline/control-plane";
import { P2pService, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel, createGrpcServer, createLogger, WeightlineError } from "@weightline/runtime";
import t from "tap";
import { createP2pService } from "../../src/services/p2p-service.ts";
import { identityOf } from "./identity.ts";

let asked = 0;
const lost = new Proxy({} as Directory, {
  get: () => async () => {
    asked += 1;
    throw new WeightlineError("Unavailable", "the backend does not answer", { wayOut: "start it" });
  },
});
const log = createLogger({ program: "test", level: "error", format: "json", file: "" });
const server = await createGrpcServer({
  routes: [createP2pService(lost, log)],
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
});
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
t.teardown(async () => {
  channel.close();
  await server.stop(0);
});
const p2p = channel.client(P2pService);
t.beforeEach(() => {
  asked = 0;
});
t.afterEach(() => {
  if (asked === 0) {
    throw new Error("the backend was not asked");
  }
});

t.test("Publish: success=false with why, ids empty", async (t) => {
  t.match(await p2p.publishMetadata({ identity: identityOf(), workerId: "w", worker: {} }), {
    success: false,
    message: /^Failed to publish metadata: the backend does not answer/,
    mxSourceId: "",
    workerId: "",
  });
});

t.test("UpdateStatus: success=false with why", async (t) => {
  t.match(await p2p.updateStatus({ mxSourceId: "x", workerId: "w", status: SourceStatus.READY }), {
    success: false,
    message: /^Failed to update status: the backend does not answer/,
  });
});

t.test("List: UNAVAILABLE, never an empty list", async (t) => {
  for (const request of [{}, { identity: identityOf() }, { limit: 0 }]) {
    await t.rejects(p2p.listSources(request), { code: Code.Unavailable, rawMessage: /the backend does not answer/ });
  }
});

t.test("Get: UNAVAILABLE, never found=false", async (t) => {
  await t.rejects(p2p.getMetadata({ mxSourceId: "x", workerId: "w" }), { code: Code.Unavailable });
});
