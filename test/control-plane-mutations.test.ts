// What strangers and broken programs send to the control plane: changed calls of all its services, changed sessions of HTTP/2, and
// inputs that once failed. Each is answered with a code that blames the caller, nobody else notices, nothing stays.
import { readdirSync } from "node:fs";
import { type ClientHttp2Session, connect as connectHttp2 } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { ApiService } from "@weightline/proto/api";
import { Health } from "@weightline/proto/grpc-health";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { NodeService } from "@weightline/proto/node";
import { P2pService, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel } from "@weightline/runtime";
import t, { type Test } from "tap";
import { type Base, bases, changedCall, makeCall } from "./support/changed-calls.ts";
import { createCluster, freePort } from "./support/cluster.ts";
import { heapBytes, INSPECTABLE } from "./support/heap.ts";
import {
  callHeaders,
  dial,
  END_HEADERS,
  END_STREAM,
  FRAME,
  frame,
  grpcMessage,
  PREFACE,
  settings,
} from "./support/http2-frames.ts";
import { createRandom, mutateBytes } from "./support/mutation.ts";
import { readOperations } from "./support/operations-port.ts";
import { until } from "./support/processes.ts";

/** The tier `fuzz` sends more. */
const CALLS = Number(process.env["WEIGHTLINE_MESSAGE_MUTATIONS"] ?? 2000);
const SESSIONS = Math.min(CALLS / 10, 1500);
const SEED = Number(process.env["WEIGHTLINE_FUZZ_SEED"] ?? 1);
const TIME_MS = 540_000;
const HANG_MS = 30_000;
const CALLS_AT_ONCE = 32;
/** Of the heap after its garbage has gone: caches of code that first ran meanwhile, and lost nodes that are still shown. */
const HEAP_GROWTH_BYTES = 16 * 1024 * 1024;

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const metricsPort = await freePort();
const controlPlane = await cluster.startControlPlane(["--metrics-port", String(metricsPort)], {
  env: {
    ...INSPECTABLE.env,
    MX_HEARTBEAT_TIMEOUT_SECS: "1",
    MX_GC_TIMEOUT_SECS: "1",
    MX_REAPER_SCAN_INTERVAL_SECS: "1",
  },
});
const port = Number(cluster.controlPlane().split(":")[1]);
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port }] });
t.teardown(() => channel.close());
let death: string | undefined;
void controlPlane.exited.then((code) => {
  death = `the control plane ended with ${code}: ${controlPlane.output().slice(-4000)}`;
});

const identity = {
  ...filesIdentity("m"),
  tensorParallelSize: 8,
  dtype: "bfloat16",
  revision: "r",
  extraParameters: { training_step: "7", a: "b" },
};
const sourceId = computeSourceId({ ...filesIdentity("m"), ...identity });
const worker = {
  workerRank: 3,
  backendMetadata: { case: "nixlMetadata", value: Buffer.alloc(40, 7) },
  tensors: [{ name: "w", addr: 2n ** 63n, size: 2n ** 40n, deviceId: 7, dtype: "F8_E4M3" }],
  status: SourceStatus.READY,
  updatedAt: -1n,
  metadataEndpoint: "10.0.0.1:5555",
  workerGrpcEndpoint: "10.0.0.1:6555",
  agentName: "a",
  accelerator: "cuda",
  sourcePayload: { case: "tensorSource", value: { tensors: [{ name: "w", size: 5n }] } },
  topology: { rack: "1" },
};
const announce = {
  node: "n",
  epoch: 1n,
  sequence: 1n,
  bootId: "b",
  storeId: "s",
  address: "127.0.0.1:1",
  state: 1,
  memory: { limit: 2n ** 40n, used: 5n },
  holdingsRevision: 1n,
  ttlMs: 1000,
  version: "0.1.0",
};
const holding = {
  holdingId: "0".repeat(32),
  identities: [{ identity: filesIdentity("held"), rank: 0, sourceId: computeSourceId(filesIdentity("held")) }],
  state: 2,
  kind: "files",
  layoutDigest: Buffer.alloc(32, 1),
  objectDigest: Buffer.alloc(32, 2),
  totalBytes: 2n ** 40n,
  chunkBytes: 1 << 20,
  tier: 1,
};
/** Messages of the reflection service: its own field numbers, one request each. */
const reflections: Base[] = ["v1", "v1alpha"].flatMap((version) =>
  [
    "3a00",
    "1a0b6865616c74682e70726f746f",
    "22106d6f64656c5f657870726573732e703270",
    "2a060a0161100a0a",
    "3201610a0161",
  ].map((hex) => ({
    service: `grpc.reflection.${version}.ServerReflection`,
    method: "ServerReflectionInfo",
    message: Buffer.from(hex, "hex"),
    json: "",
    stream: true,
  })),
);
const ALL: Base[] = [
  ...bases(P2pService, {
    PublishMetadata: [
      { identity, worker, workerId: "w", podName: "p", podUid: "u", podNamespace: "n" },
      { identity, workerId: "w" },
    ],
    UpdateStatus: [{ mxSourceId: sourceId, workerId: "w", workerRank: 3, status: SourceStatus.READY, sourceLoad: 0.5 }],
    GetMetadata: [{ mxSourceId: sourceId, workerId: "w" }],
    ListSources: [
      { identity, statusFilter: SourceStatus.READY },
      { modelNameFilter: "m", workerRankFilter: 3, minTrainingStep: 5n, minUpdatedAt: 5n, limit: 10 },
    ],
  }),
  ...bases(NodeService, {
    Announce: [
      { ...announce, holdings: { holdings: [holding] } },
      { ...announce, node: "other", storeId: "t" },
    ],
    Leave: [{ node: "n", epoch: 1n, bootId: "b" }],
    Lookup: [{ sourceId, rank: 0, modelName: "held" }],
    ListNodes: [{}],
    ListSources: [{ modelName: "m" }],
    FillNodes: [{ nodes: ["nobody"], identity, rank: 0 }],
  }),
  ...bases(ModelService, {
    EnsureModelDownloaded: [{ modelName: "m", provider: 0, revision: "r" }],
    StreamModelFiles: [{ modelName: "m", chunkSize: 5, fileSelector: { paths: ["a/b"] } }],
    ListModelFiles: [{ modelName: "m" }],
    DeleteModel: [{ modelName: "m", provider: 3 }],
  }),
  ...bases(HealthService, { GetHealth: [{}] }),
  ...bases(ApiService, { SendRequest: [{ id: "1", action: "ping", payload: Buffer.alloc(9, 1) }] }),
  ...bases(Health, { Check: [{ service: "model_express.p2p.P2pService" }] }),
  ...reflections,
];

/** gRPC codes that say what a caller did: its argument, its deadline, a limit, a name or method that is not there. */
const BLAMES_CALLER = new Set([0, 3, 4, 5, 8, 11, 12]);
/** PROTOCOL_ERROR, for headers that HTTP/2 does not allow; CANCEL. */
const RESETS = new Set([1, 8]);
/** ModelService is UNAVAILABLE whatever it is asked; nodes that were announced do not answer. */
const UNAVAILABLE = 14;

const descriptors = () => readdirSync(`/proc/${controlPlane.pid}/fd`).length;

/** A client that behaves, as long as `work` takes: gives the count of its rounds. */
async function besideOthers(work: Promise<unknown>): Promise<number> {
  let over = false;
  let rounds = 0;
  void work.finally(() => {
    over = true;
  });
  const p2p = channel.client(P2pService);
  while (!over) {
    const own = { ...filesIdentity("own"), modelName: "own" };
    const { success, mxSourceId } = await p2p.publishMetadata({ identity: own, workerId: "own", worker: {} });
    const update = { mxSourceId, workerId: "own", workerRank: 0, status: SourceStatus.READY };
    if (!success || !(await p2p.updateStatus(update)).success) {
      throw new Error("a worker of a client that behaves was not taken");
    }
    const { instances } = await p2p.listSources({ identity: own, statusFilter: SourceStatus.READY });
    if (instances.length !== 1 || !(await p2p.getMetadata({ mxSourceId, workerId: "own" })).found) {
      throw new Error("a worker of a client that behaves was not found");
    }
    rounds += 1;
    await sleep(50);
  }
  await work;
  return rounds;
}

/** What must be as before, whatever was sent. */
async function unchanged(t: Test, before: { heap: number; descriptors: number }): Promise<void> {
  // Workers that were published meanwhile are forgotten after a second.
  await until("the end of what was published", async () => {
    const { sources } = JSON.parse(await readOperations(metricsPort, "/v1/sources")) as {
      sources: Array<{ workers?: Array<{ node?: string }> }>;
    };
    return sources.every(({ workers = [] }) => workers.every(({ node }) => node !== undefined && node !== ""));
  });
  await until("as many descriptors as before", () => descriptors() <= before.descriptors);
  const grown = (await heapBytes(controlPlane)) - before.heap;
  t.ok(grown < HEAP_GROWTH_BYTES, `the heap grew by ${Math.round(grown / 1024)} KiB`);
  t.strictSame(
    controlPlane
      .output()
      .split("\n")
      .filter((line) => /"level":"?(error|fatal|50|60)/.test(line))
      .slice(0, 3),
    [],
    "no failure of its own in its log",
  );
  t.equal(death, undefined);
}

/** Why an outcome is wrong; undefined when it is right. */
function wrong(base: Base, outcome: string): string | undefined {
  const [kind, code] = outcome.split(" ");
  const right =
    (kind === "http" && Number(code) < 500) ||
    (kind === "reset" && RESETS.has(Number(code))) ||
    BLAMES_CALLER.has(Number(code)) ||
    (Number(code) === UNAVAILABLE && (base.service === ModelService.typeName || base.method === "FillNodes"));
  return right ? undefined : `${base.service}/${base.method} was answered ${outcome}`;
}

async function measured(): Promise<{ heap: number; descriptors: number }> {
  await readOperations(metricsPort, "/metrics");
  return { heap: await heapBytes(controlPlane), descriptors: descriptors() };
}

t.test(`${CALLS} changed calls of all services, seed ${SEED}`, { timeout: TIME_MS }, async (t) => {
  const random = createRandom(SEED);
  const kinds = new Map<string, number>();
  const answered = new Set<string>();
  const send = async (count: number) => {
    let session: ClientHttp2Session | undefined;
    let left = count;
    const one = async () => {
      while (left > 0) {
        left -= 1;
        if (session === undefined || session.destroyed || session.closed) {
          session = connectHttp2(`http://127.0.0.1:${port}`);
          session.on("error", () => undefined);
        }
        const call = changedCall(ALL, random);
        const outcome = await makeCall(session, call, HANG_MS);
        const problem = death ?? wrong(call.base, outcome);
        if (problem !== undefined) {
          t.fail(`${problem}; headers ${JSON.stringify(call.headers)}, body ${call.body.toString("hex")}`);
          left = 0;
        }
        const kind = outcome.split(" ").slice(0, 2).join(" ");
        kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
        answered.add(`${call.base.service}/${call.base.method}`);
      }
    };
    await Promise.all(Array.from({ length: CALLS_AT_ONCE }, one));
    session?.destroy();
  };
  await besideOthers(send(Math.min(CALLS / 4, 2000)));
  const before = await measured();
  const rounds = await besideOthers(send(CALLS));
  t.ok(rounds > 0, `a client that behaves was served ${rounds} times`);
  t.comment(JSON.stringify(Object.fromEntries(kinds)));
  for (const kind of ["grpc 0", "grpc 3", "grpc 5", "grpc 8", "grpc 12", "grpc 14", "http 415"]) {
    t.ok(kinds.has(kind), `some were answered ${kind}`);
  }
  t.equal(answered.size, new Set(ALL.map(({ service, method }) => `${service}/${method}`)).size, "every method");
  await unchanged(t, before);
});

/** The bytes of a whole session with one call of each kind of framing. */
function rightSession(): Buffer {
  const call = (stream: number, { service, method, message }: Base) => [
    frame(FRAME.headers, END_HEADERS, stream, callHeaders(`/${service}/${method}`, { "grpc-timeout": "2S" })),
    frame(FRAME.data, END_STREAM, stream, grpcMessage(message)),
  ];
  return Buffer.concat([
    settings([[4, 100_000]]),
    ...call(1, ALL[0] as Base),
    frame(FRAME.ping, 0, 0, Buffer.alloc(8, 1)),
    ...call(3, ALL[4] as Base),
    frame(FRAME.windowUpdate, 0, 0, Buffer.from([0, 0, 16, 0])),
    ...call(5, ALL[6] as Base),
  ]);
}

/** Sends bytes and waits for the other side to close. */
async function session(bytes: Buffer): Promise<void> {
  const socket = await dial(port);
  socket.on("error", () => undefined);
  socket.resume();
  const closed = new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`a connection did not end within ${HANG_MS} ms`)), HANG_MS);
    socket.once("close", () => {
      clearTimeout(timer);
      resolve();
    });
  });
  socket.end(bytes);
  await closed;
}

t.test(`HTTP/2: ${SESSIONS} changed sessions, seed ${SEED}`, { timeout: TIME_MS }, async (t) => {
  const random = createRandom(SEED + 2);
  const right = rightSession();
  const tokens = [
    "000000040000000000",
    "00000403000000000100000008",
    "0000080600000000000000000000000000",
    "0000050200000000010000000010",
    "00000009040000000100",
    "000000010500000001",
    "00000408000000000000000000",
    "00000807000000000000000000000000ff",
    "00000001250000000b",
  ].map((hex) => Buffer.from(hex, "hex"));
  const send = async (count: number) => {
    for (let i = 0; i < count; i++) {
      const changed = mutateBytes(right, random, tokens);
      await session(
        random.oneIn(10)
          ? mutateBytes(Buffer.concat([PREFACE, right]), random, tokens)
          : Buffer.concat([PREFACE, changed]),
      );
    }
  };
  await send(SESSIONS / 4);
  const before = await measured();
  const rounds = await besideOthers(Promise.all([send(SESSIONS / 3), send(SESSIONS / 3), send(SESSIONS / 3)]));
  t.ok(rounds > 0, `a client that behaves was served ${rounds} times`);
  await unchanged(t, before);
});

t.test("calls that once failed", async (t) => {
  const ask = async (headers: Record<string, string>, body: Buffer) => {
    const client = connectHttp2(`http://127.0.0.1:${port}`);
    client.on("error", () => undefined);
    try {
      const call = { ":method": "POST", ":path": "/model_express.health.HealthService/GetHealth" };
      const all = { ...call, "content-type": "application/grpc", ...headers };
      return (await makeCall(client, { base: ALL[0] as Base, headers: all, body }, HANG_MS)).split(" ").slice(0, 2);
    } finally {
      client.destroy();
    }
  };
  const empty = grpcMessage(Buffer.alloc(0));
  const invalid = ["grpc", "3"];
  // All of these were answered INTERNAL or UNIMPLEMENTED, as if the server were at fault or too old.
  t.same(await ask({ "grpc-timeout": "x" }, empty), invalid, "a deadline that is none");
  t.same(await ask({}, Buffer.alloc(0)), invalid, "no message");
  t.same(await ask({}, empty.subarray(0, 3)), invalid, "half of a message's head");
  t.same(await ask({}, Buffer.concat([empty, empty])), invalid, "two messages");
  const packed = Buffer.concat([Buffer.from([1, 0, 0, 0, 4]), Buffer.from("nope")]);
  t.same(await ask({ "grpc-encoding": "gzip" }, packed), invalid, "what does not unpack");
  t.same(await ask({}, empty), ["grpc", "0"]);
});

t.test("it is the same process, and ends when it is told", async (t) => {
  t.equal(death, undefined);
  channel.close();
  t.equal(await controlPlane.stop(), 0);
});
