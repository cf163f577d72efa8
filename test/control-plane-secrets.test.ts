// What the control plane is trusted with, in every place where it can be given, is nowhere to be read.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { CONTROL_PLANE_OPTIONS } from "@weightline/control-plane";
import { computeSourceId } from "@weightline/proto";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { NodeService } from "@weightline/proto/node";
import { P2pService, SourceIdentitySchema, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel, describeError, LOG_FORMATS, parseAddress, readConfiguration } from "@weightline/runtime";
import t from "tap";
import { createCluster, freePort } from "./support/cluster.ts";
import { type Finished, ROOT, runCommand, startProgram } from "./support/program.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());

/** A secret of each place: its own, so that a leak tells where it came from. */
const secret = (place: string) => `hunter2-${place}-3f9c`;
const ADDRESS = 0x7f3a5c2b1000n;
const ENVIRONMENT = {
  REDIS_URL: `redis://user:${secret("redis")}@127.0.0.1:6379/0`,
  HF_TOKEN: secret("hf"),
  NGC_API_KEY: secret("ngc"),
  NGC_CLI_API_KEY: secret("ngc-cli"),
  AWS_SECRET_ACCESS_KEY: secret("aws"),
  AWS_SESSION_TOKEN: secret("aws-session"),
  GOOGLE_APPLICATION_CREDENTIALS: `/secrets/${secret("google")}.json`,
};

/** Every form in which a secret could be written. */
function forms(text: string): string[] {
  const bytes = Buffer.from(text);
  return [text, bytes.toString("base64").replace(/=+$/, ""), bytes.toString("base64url"), bytes.toString("hex")];
}

const PLACES = [
  "redis",
  "hf",
  "ngc",
  "ngc-cli",
  "aws",
  "aws-session",
  "google",
  "bearer",
  "nixl",
  "session",
  "pod-token",
  "malformed",
  "query",
  "yaml",
];

function leaks(text: string): string[] {
  const found = PLACES.filter((place) => forms(secret(place)).some((form) => text.includes(form)));
  const address = [ADDRESS.toString(), ADDRESS.toString(16)].filter((form) => text.toLowerCase().includes(form));
  return [...found, ...address];
}

/** Sends bytes that are no message, and a header with a token; ends with the answer. */
function sendMalformed(address: string, path: string, bytes: Buffer): Promise<string> {
  const session = connectHttp2(`http://${address}`);
  return new Promise((resolve) => {
    session.on("error", (error) => resolve(error.message));
    const stream = session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/grpc",
      te: "trailers",
      authorization: `Bearer ${secret("bearer")}`,
    });
    const prefix = Buffer.alloc(5);
    prefix.writeUInt32BE(bytes.length, 1);
    let answer = "";
    const take = (headers: Record<string, unknown>) => {
      answer += JSON.stringify(headers);
    };
    stream.on("response", take).on("trailers", take);
    stream.on("close", () => {
      session.destroy();
      resolve(answer);
    });
    stream.resume().end(Buffer.concat([prefix, bytes]));
  });
}

/** Uses everything, wrongly too; gives all that others than the caller could read, by its name. */
async function useIt(): Promise<Record<string, string>> {
  const metricsPort = await freePort();
  const program = await cluster.startControlPlane(["--metrics-port", String(metricsPort), "-l", "trace"], {
    env: ENVIRONMENT,
  });
  const address = cluster.controlPlane();
  const channel = createGrpcChannel({ addresses: [parseAddress(address, "address")] });
  const call = { headers: { authorization: `Bearer ${secret("bearer")}` } };
  const p2p = channel.client(P2pService);
  const identity = create(SourceIdentitySchema, { modelName: "m" });
  const tensors = [{ name: "w", addr: ADDRESS, size: 1n, dtype: "F32" }];
  for (const [workerId, backendMetadata] of [
    ["one", { case: "nixlMetadata", value: Buffer.from(secret("nixl")) }],
    ["two", { case: "transferEngineSessionId", value: secret("session") }],
    ["", { case: "nixlMetadata", value: Buffer.from(secret("nixl")) }],
  ] as const) {
    const worker = { backendMetadata, tensors, sourcePayload: { case: "tensorSource" as const, value: { tensors } } };
    await p2p.publishMetadata({ identity, workerId, worker, podUid: secret("pod-token") }, call);
  }
  const mxSourceId = computeSourceId(identity);
  await p2p.updateStatus({ mxSourceId, workerId: "one", workerRank: 0, status: SourceStatus.READY }, call);
  await p2p.updateStatus({ mxSourceId, workerId: "one", workerRank: 9, status: SourceStatus.READY }, call);
  const got = await p2p.getMetadata({ mxSourceId, workerId: "one" }, call);
  t.equal(got.worker?.tensors[0]?.addr, ADDRESS, "whoever asks for the worker has what it published");
  await channel
    .client(ModelService)
    .listModelFiles({ modelName: "m" }, call)
    .catch(() => undefined);
  await channel
    .client(NodeService)
    .announce({ node: "", bootId: secret("pod-token") }, call)
    .catch(() => undefined);
  const errors = [
    JSON.stringify(await channel.client(HealthService).getHealth({}, call), (_, value) =>
      typeof value === "bigint" ? String(value) : value,
    ),
    await sendMalformed(
      address,
      "/model_express.p2p.P2pService/PublishMetadata",
      Buffer.from(`\xff\xff${secret("malformed")}`, "latin1"),
    ),
    await sendMalformed(address, "/model_express.p2p.P2pService/Nothing", Buffer.from(secret("malformed"))),
  ];
  t.match(errors[1], /"grpc-status":"3"/, "the malformed one was refused");
  channel.close();
  const get = async (path: string) => (await fetch(`http://127.0.0.1:${metricsPort}${path}`)).text();
  const texts: Record<string, string> = { errors: errors.join("\n") };
  for (const path of ["/metrics", "/readyz", "/v1/nodes", "/v1/sources", "/v1/transfers"]) {
    texts[path] = await get(`${path}?token=${secret("query")}`);
  }
  t.match(texts["/v1/sources"], `"${mxSourceId}"`);
  for (const command of ["nodes", "sources", "health"]) {
    const done = await cluster.mxctl(["-v", command, "--output", "json"]);
    texts[`mxctl ${command}`] = done.stdout + done.stderr;
  }
  await program.stop();
  texts["log"] = program.output();
  return texts;
}

t.test("errors, metrics, admin API, mxctl, and the log at trace", async (t) => {
  const texts = await useIt();
  for (const [name, text] of Object.entries(texts)) {
    t.same(leaks(text), [], name);
  }
  t.match(texts["log"], /"event":"publish-refused"/);
  t.match(texts["log"], /"event":"call-failed"/);
  t.match(texts["log"], /HF_TOKEN has no effect/, "the settings were there");
});

t.test("the other formats, in a file", async (t) => {
  for (const format of LOG_FORMATS.filter((each) => each !== "json")) {
    const file = `${cluster.folder}/${format}.log`;
    const config = `${cluster.folder}/${format}.yaml`;
    writeFileSync(config, `logging: { file: ${file}, level: trace, format: ${format} }\n`);
    const port = String(await freePort());
    const flags = ["--config", config, "--host", "127.0.0.1", "--port", port, "--metrics-port", "0"];
    const program = startProgram("control-plane", flags, { env: ENVIRONMENT });
    const text = () => (existsSync(file) ? readFileSync(file, "utf8") : "");
    for (let i = 0; i < 1000 && !text().includes("ready"); i++) {
      await sleep(20);
    }
    const bytes = Buffer.from(`\xff\xff${secret("malformed")}`, "latin1");
    await sendMalformed(`127.0.0.1:${port}`, "/model_express.p2p.P2pService/PublishMetadata", bytes);
    t.equal(await program.stop(), 0);
    t.match(text(), /a call failed/);
    t.match(text(), /HF_TOKEN/);
    t.same(leaks(text() + program.output()), [], format);
  }
});

t.test("commands that only print, and starts that fail", async (t) => {
  let files = 0;
  const yaml = (content: string) => {
    const file = `${cluster.folder}/${files++}.yaml`;
    writeFileSync(file, content);
    return file;
  };
  const run = (entry: string, argv: readonly string[]): Promise<Finished> =>
    runCommand(
      [
        process.execPath,
        "--disable-warning=ExperimentalWarning",
        `${ROOT}packages/control-plane/src/${entry}`,
        ...argv,
      ],
      { env: ENVIRONMENT },
    );
  const value = secret("yaml");
  for (const [entry, argv, code] of [
    ["main.ts", ["--validate-config"], 0],
    ["main.ts", ["--print-config"], 0],
    ["main.ts", ["-c", yaml(`server: { token: ${value} }\n`)], 1],
    ["config-gen.ts", ["-i", yaml(`token: ${value}\n`), "-o", `${cluster.folder}/out.yaml`], 0],
  ] as const) {
    const done = await run(entry, argv);
    t.equal(done.code, code, `${entry} ${argv.join(" ")}: ${done.stderr}`);
    t.same(leaks(done.stdout + done.stderr), [], argv[0]);
  }
  for (const argv of [
    ["--prot", value],
    ["--hf-token", value],
    ["-c", yaml(`token: ${value}\n`)],
    ["-c", yaml(`server: { port: { token: ${value} } }\n`)],
    ["-c", yaml(`cache: [ ${value} ]\n`)],
    ["-c", yaml(`- ${value}\n`)],
    ["-c", yaml(`a: "${value}\n`)],
    ["-c", yaml(`a: *${value}\n`)],
    ["-c", yaml(`? [${value}]\n: x\n`)],
    ["-c", yaml(`? { ${value}: 1 }\n: x\n`)],
  ]) {
    try {
      readConfiguration({ table: CONTROL_PLANE_OPTIONS, argv, env: ENVIRONMENT });
      t.fail(`${argv.join(" ")} was taken`);
    } catch (error) {
      t.same(leaks(describeError(error)), [], describeError(error));
    }
  }
});
