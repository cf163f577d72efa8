// contract.md, GetMetadata.
import { SourceStatus } from "@weightline/proto/p2p";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

onEveryBackend(async (t, { p2p, ready }) => {
  t.test("an empty id: found=false, both echoes empty", async (t) => {
    const { sourceId, workerId } = await ready({ revision: "empty" });
    for (const request of [{}, { mxSourceId: sourceId }, { workerId }]) {
      t.match(await p2p.getMetadata(request), { found: false, mxSourceId: "", workerId: "", worker: undefined });
    }
  });

  t.test("not found: found=false, both ids echoed", async (t) => {
    const { sourceId, workerId } = await ready({ revision: "other" });
    for (const request of [
      { mxSourceId: "0".repeat(16), workerId },
      { mxSourceId: sourceId, workerId: "nobody" },
      { mxSourceId: "not an id", workerId: "\u{1F600}" },
      { mxSourceId: sourceId.toUpperCase(), workerId: `${workerId} ` },
    ]) {
      t.match(await p2p.getMetadata(request), { found: false, ...request, worker: undefined, identity: undefined });
    }
  });

  t.test("found: the worker, its ids and its identity in its own case", async (t) => {
    const { sourceId, workerId } = await ready({ revision: "Found" });
    t.match(await p2p.getMetadata({ mxSourceId: sourceId, workerId }), {
      found: true,
      mxSourceId: sourceId,
      workerId,
      identity: { revision: "Found", modelName: "deepseek-ai/DeepSeek-V3" },
      worker: { status: SourceStatus.READY, accelerator: "cuda" },
    });
  });

  t.test("tensor_source is enough: the deprecated tensors may stay empty", async (t) => {
    const tensors = [{ name: "a", addr: 1n, size: 2n }];
    const { sourceId, workerId } = await ready(
      { revision: "tensors" },
      { sourcePayload: { case: "tensorSource", value: { tensors } } },
    );
    const { worker } = await p2p.getMetadata({ mxSourceId: sourceId, workerId });
    t.match(worker?.sourcePayload, { case: "tensorSource", value: { tensors } });
    t.same(worker?.tensors, []);
  });

  t.test("an older client's deprecated tensors come back", async (t) => {
    const tensors = [{ name: "old", addr: 2n ** 63n, size: 5n, deviceId: 1, dtype: "F32" }];
    const { sourceId, workerId } = await ready({ revision: "old" }, { tensors });
    t.match((await p2p.getMetadata({ mxSourceId: sourceId, workerId })).worker?.tensors, tensors);
  });

  t.test("status and updated_at are the live ones, not the published", async (t) => {
    const { sourceId, workerId } = await ready(
      { revision: "live" },
      { status: SourceStatus.INITIALIZING, updatedAt: 5n },
    );
    await p2p.updateStatus({ mxSourceId: sourceId, workerId, status: SourceStatus.STALE });
    const got = await p2p.getMetadata({ mxSourceId: sourceId, workerId });
    const [listed] = (await p2p.listSources({ identity: identityOf({ revision: "live" }) })).instances;
    t.equal(got.worker?.status, SourceStatus.STALE);
    t.equal(got.worker?.updatedAt, listed?.updatedAt);
  });
});
