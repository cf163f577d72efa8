// contract.md, UpdateStatus: heartbeats and their load.
import { setTimeout as sleep } from "node:timers/promises";
import { SourceStatus } from "@weightline/proto/p2p";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

onEveryBackend(async (t, { p2p, ready }) => {
  const { READY } = SourceStatus;

  t.test("an empty mx_source_id: `mx_source_id is required`", async (t) => {
    t.match(await p2p.updateStatus({ workerId: "w", status: READY }), {
      success: false,
      message: "mx_source_id is required",
    });
    t.equal((await p2p.updateStatus({})).message, "mx_source_id is required", "told first");
  });

  t.test("an empty worker_id: `worker_id is required`", async (t) => {
    t.match(await p2p.updateStatus({ mxSourceId: "x", status: READY }), {
      success: false,
      message: "worker_id is required",
    });
  });

  t.test("a bad enum: `invalid status value: N`, and nothing changes", async (t) => {
    const { sourceId, workerId } = await ready({ revision: "enum" });
    for (const status of [4, 9, -1, 2_147_483_647] as SourceStatus[]) {
      t.match(await p2p.updateStatus({ mxSourceId: sourceId, workerId, status }), {
        success: false,
        message: `invalid status value: ${status}`,
      });
    }
    t.equal((await p2p.getMetadata({ mxSourceId: sourceId, workerId })).worker?.status, READY);
  });

  t.test("an unknown source, worker or rank is never success: `Failed to update status: ...`", async (t) => {
    const { sourceId, workerId } = await ready({ revision: "unknown" }, { workerRank: 2 });
    for (const request of [
      { mxSourceId: "0".repeat(16), workerId, workerRank: 2 },
      { mxSourceId: sourceId, workerId: "nobody", workerRank: 2 },
      { mxSourceId: sourceId, workerId, workerRank: 0 },
      { mxSourceId: sourceId, workerId, workerRank: 3 },
    ]) {
      t.match(await p2p.updateStatus({ ...request, status: READY }), {
        success: false,
        message: /^Failed to update status: ./,
      });
    }
    t.ok((await p2p.updateStatus({ mxSourceId: sourceId, workerId, workerRank: 2, status: READY })).success);
  });

  t.test("a refused heartbeat makes no worker", async (t) => {
    const identity = identityOf({ revision: "no worker" });
    const { mxSourceId } = await p2p.publishMetadata({ identity, workerId: "there", worker: {} });
    await p2p.updateStatus({ mxSourceId, workerId: "ghost", status: READY });
    t.same(
      (await p2p.listSources({ identity })).instances.map(({ workerId }) => workerId),
      ["there"],
    );
  });

  /** What List shows after heartbeats with these loads, one after another. */
  async function loads(
    revision: string,
    values: ReadonlyArray<number | undefined>,
  ): Promise<Array<number | undefined>> {
    const { sourceId, workerId } = await ready({ revision });
    const seen = [];
    for (const sourceLoad of values) {
      const { success } = await p2p.updateStatus({
        mxSourceId: sourceId,
        workerId,
        status: READY,
        ...(sourceLoad === undefined ? {} : { sourceLoad }),
      });
      if (!success) {
        throw new Error(`a load of ${sourceLoad} was refused`);
      }
      seen.push((await p2p.listSources({ identity: identityOf({ revision }) })).instances[0]?.sourceLoad);
    }
    return seen;
  }

  t.test("source_load is clamped to 0..1", async (t) => {
    t.same(await loads("clamped", [0.5, 1, 1.0000001, 3, 3e38, -0.25, -3e38, 0.125]), [0.5, 1, 1, 1, 1, 0, 0, 0.125]);
  });

  t.test("NaN or an infinite source_load counts as none, and is no refusal", async (t) => {
    const { NaN: nan, POSITIVE_INFINITY: up, NEGATIVE_INFINITY: down } = Number;
    t.same(await loads("no number", [0.5, nan, 0.5, up, 0.5, down]), [0.5, undefined, 0.5, undefined, 0.5, undefined]);
  });

  t.test("a heartbeat without a source_load clears it", async (t) => {
    t.same(await loads("cleared", [0.75, undefined, undefined, 0.25]), [0.75, undefined, undefined, 0.25]);
  });

  t.test("a source_load of 0.0 stays present, -0.0 too", async (t) => {
    t.same(await loads("zero", [0, -0]), [0, 0]);
  });

  t.test("topology, metadata and everything else published survives heartbeats", async (t) => {
    const nixl = Buffer.from([1, 0, 255]);
    const { sourceId, workerId } = await ready(
      { revision: "survives" },
      { topology: { rack: "7" }, agentName: "a", backendMetadata: { case: "nixlMetadata", value: nixl } },
    );
    for (let i = 0; i < 3; i++) {
      await p2p.updateStatus({ mxSourceId: sourceId, workerId, status: READY, sourceLoad: 0.5 });
    }
    const { worker } = await p2p.getMetadata({ mxSourceId: sourceId, workerId });
    t.match(worker, { topology: { rack: "7" }, agentName: "a", accelerator: "cuda" });
    t.same(Buffer.from(worker?.backendMetadata.value as Uint8Array), nixl);
    t.match((await p2p.listSources({ identity: identityOf({ revision: "survives" }) })).instances, [
      { topology: { rack: "7" } },
    ]);
  });

  t.test("each heartbeat moves updated_at on, and each status is taken, back and forth", async (t) => {
    const { sourceId, workerId } = await ready({ revision: "moves" });
    let last = 0n;
    for (const status of [SourceStatus.STALE, READY, SourceStatus.INITIALIZING, SourceStatus.UNKNOWN, READY]) {
      await sleep(2);
      t.ok((await p2p.updateStatus({ mxSourceId: sourceId, workerId, status })).success);
      const { worker } = await p2p.getMetadata({ mxSourceId: sourceId, workerId });
      t.equal(worker?.status, status);
      t.ok((worker?.updatedAt ?? 0n) > last);
      last = worker?.updatedAt ?? 0n;
    }
  });
});
