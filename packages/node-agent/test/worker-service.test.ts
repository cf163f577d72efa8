// WorkerService by the contract's rules, against a real agent.
import { Code } from "@connectrpc/connect";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import { WorkerService } from "@weightline/proto/p2p";
import { PeerService } from "@weightline/proto/peer";
import { createGrpcChannel, fromRpcError, parseAddress } from "@weightline/runtime";
import t from "tap";
import { createCluster } from "../../../test/support/cluster.ts";
import { writeTensors } from "../../../test/support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const agent = await cluster.startAgent("a");
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { b: { dtype: "F32", shape: [4] }, a: { dtype: "BF16", shape: [2, 3] } });
await cluster.mxctl(["load", path, "--model-name", "m", "--rank", "3"], agent);
const channel = createGrpcChannel({ addresses: [parseAddress(agent.address, "address")] });
t.teardown(() => channel.close());
const worker = channel.client(WorkerService);
const peer = channel.client(PeerService);
const mxSourceId = "f6f376e5d10056ad";
const [holding] = (await agent.client.status({})).holdings;
const workerId = `${holding?.holdingId}-3`;

t.test("GetTensorManifest: names, sizes and dtypes; worker_id is optional, and checked when it is there", async (t) => {
  const manifest = await worker.getTensorManifest({ mxSourceId });
  t.match(manifest, {
    mxSourceId,
    workerId,
    workerRank: 3,
    accelerator: "cpu",
    agentName: "a",
    tensors: [
      { name: "a", dtype: "BF16", size: 12n },
      { name: "b", dtype: "F32", size: 16n },
    ],
  });
  t.match(await worker.getTensorManifest({ mxSourceId, workerId }), { workerId });
  await t.rejects(worker.getTensorManifest({}), {
    code: Code.InvalidArgument,
    rawMessage: "mx_source_id is required for tensor reads",
  });
  await t.rejects(worker.getTensorManifest({ mxSourceId: "0".repeat(16) }), {
    code: Code.FailedPrecondition,
    rawMessage: `mx_source_id mismatch: expected ${mxSourceId}, got ${"0".repeat(16)}`,
  });
  await t.rejects(worker.getTensorManifest({ mxSourceId, workerId: "" }), {
    code: Code.FailedPrecondition,
    rawMessage: /^worker_id mismatch: /,
  });
  await t.rejects(worker.getTensorManifest({ mxSourceId, workerId: "x" }), { code: Code.FailedPrecondition });
});

t.test("a manifest above what stock clients receive, 4 MiB or 42,000 tensors, is refused in words", async (t) => {
  const manifestOf = async (modelName: string, count: number, nameBytes: number) => {
    const file = `${cluster.folder}/${modelName}.safetensors`;
    const names = Array.from({ length: count }, (_, i) => String(i).padStart(nameBytes, "x"));
    writeTensors(file, Object.fromEntries(names.map((name) => [name, { dtype: "U8", shape: [1] }])));
    await cluster.load(agent, file, modelName);
    return worker.getTensorManifest({ mxSourceId: computeSourceId(filesIdentity(modelName)) });
  };
  const { tensors } = await manifestOf("fits", 10_000, 395);
  t.equal(tensors.length, 10_000);
  await t.rejects(manifestOf("long-names", 10_000, 415), {
    code: Code.ResourceExhausted,
    rawMessage: /^the manifest's \d+ bytes are above what a stock client takes \(4194304\)$/,
  });
  await t.rejects(manifestOf("many", 42_001, 5), {
    code: Code.ResourceExhausted,
    rawMessage: "the manifest of 42001 tensors is above what a stock client takes (42000)",
  });
});

t.test("tensor reads: a lease that keeps the memory, released once", async (t) => {
  const { leaseId, manifest } = await worker.prepareTensorRead({ mxSourceId, workerId });
  t.equal(manifest?.tensors.length, 2);
  t.equal((await cluster.mxctl(["evict", "--model-name", "m", "--rank", "3"], agent)).code, 6, "it is leased");
  await t.rejects(worker.releaseTensorRead({ leaseId }), { code: Code.InvalidArgument });
  await t.rejects(worker.releaseTensorRead({ mxSourceId: "0".repeat(16), leaseId }), {
    code: Code.FailedPrecondition,
    rawMessage: /^mx_source_id mismatch: expected .*, got 0000000000000000$/,
  });
  await t.rejects(worker.releaseTensorRead({ mxSourceId, leaseId, workerId: "" }), {
    code: Code.FailedPrecondition,
    rawMessage: /^worker_id mismatch: /,
  });
  t.equal((await agent.client.status({})).leases, 1, "what was refused released nothing");
  await worker.releaseTensorRead({ mxSourceId, leaseId, workerId });
  await t.rejects(worker.releaseTensorRead({ mxSourceId, leaseId }), {
    code: Code.NotFound,
    rawMessage: `tensor read lease not found or expired: ${leaseId}`,
  });
});

t.test("artifact calls: none here", async (t) => {
  await t.rejects(worker.getArtifactManifestHeader({ mxSourceId, artifactId: "x" }), {
    code: Code.NotFound,
    rawMessage: "artifact manifest is not available for this worker",
  });
});

t.test("Open: epochs, versions and digests that do not fit are refused in words", async (t) => {
  const request = { holdingId: holding?.holdingId ?? "", child: "c", streams: 2, minVersion: 1, maxVersion: 1 };
  const open = async (change: object) => {
    try {
      await peer.open({ ...request, ...change });
    } catch (error) {
      return fromRpcError(error);
    }
    throw new Error("it was opened");
  };
  t.match(await open({ epoch: 5n }), { code: "Refused", field: "epoch", value: "5" });
  t.match(await open({ minVersion: 2, maxVersion: 9 }), { code: "Refused", field: "max_version", limit: "1 to 1" });
  t.match(await open({ algorithm: "sha-256" }), {
    code: "Refused",
    field: "--digest",
    value: "xxh3-128",
    limit: "sha-256",
  });
  t.match(await open({ holdingId: "0".repeat(32) }), { code: "NotFound" });
  const opened = await peer.open({ ...request, streams: 99 });
  t.equal(opened.tickets.length, 4, "at most four streams");
  t.match(opened.endpoints, [{ transport: "stream", address: agent.dataAddress }]);
  t.match(await peer.find({ subject: { case: "objectDigest", value: holding?.objectDigest ?? new Uint8Array() } }), {
    node: "a",
    holdings: [{ holdingId: request.holdingId }],
  });
  t.same(
    (await peer.reportDamage({ holdingId: request.holdingId, chunks: [0n], child: "liar" })).confirmed,
    false,
    "it digests its own copy before it believes",
  );
});

t.test("draining: tensor source is draining, nothing new is opened, leases are still released", async (t) => {
  const { leaseId } = await worker.prepareTensorRead({ mxSourceId });
  t.equal((await cluster.mxctl(["drain"], agent)).code, 0);
  await t.rejects(worker.getTensorManifest({ mxSourceId }), {
    code: Code.Unavailable,
    rawMessage: "tensor source is draining",
  });
  await worker.releaseTensorRead({ mxSourceId, leaseId });
  await t.rejects(peer.open({ holdingId: holding?.holdingId ?? "" }), { code: Code.Unavailable });
  await t.rejects(agent.python('agent.acquire(model_name="m", rank=3)'), /Unavailable: this node is draining/);
  t.equal((await fetch(`http://127.0.0.1:${agent.metricsPort}/readyz`)).status, 503);
});
