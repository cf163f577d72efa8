// contract.md: odd worker ids are ordinary ids and harm nothing; one worker_id may have several ranks.
import { setTimeout as sleep } from "node:timers/promises";
import { SourceStatus } from "@weightline/proto/p2p";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

const ODD_IDS = [
  "a:b",
  "a:b:c",
  ":",
  "status:0",
  "mx:source:0",
  "__proto__",
  "__attributes__",
  "constructor",
  "toString",
  "x".repeat(500),
  "{tag}",
  "}{",
  "{}",
  "*",
  "[a-z]?",
  "two words",
  " ",
  "\t\r\n",
  "\0",
  "a\0b",
  '"quoted"\\',
  "../../etc/passwd",
  "10",
  "9",
  "-0",
  "\u00e9",
  "e\u0301",
  "\u{1F600}",
  "\u0130stanbul",
  "A",
  "a",
  "null",
  "undefined",
  "\ufeffbom",
];

onEveryBackend(async (t, { p2p }) => {
  const { READY } = SourceStatus;

  t.test("odd worker ids are ordinary ids: each found, listed and heartbeaten by itself", async (t) => {
    const identity = identityOf({ revision: "odd" });
    let mxSourceId = "";
    for (const [i, workerId] of ODD_IDS.entries()) {
      const published = await p2p.publishMetadata({
        identity,
        workerId,
        worker: { workerRank: i, agentName: `agent ${i}` },
      });
      t.match(published, { success: true, workerId });
      ({ mxSourceId } = published);
    }
    for (const [i, workerId] of ODD_IDS.entries()) {
      t.match(await p2p.getMetadata({ mxSourceId, workerId }), {
        found: true,
        workerId,
        worker: { workerRank: i, agentName: `agent ${i}` },
      });
      t.ok((await p2p.updateStatus({ mxSourceId, workerId, workerRank: i, status: READY, sourceLoad: 0.5 })).success);
      t.notOk((await p2p.updateStatus({ mxSourceId, workerId, workerRank: i + 1, status: READY })).success);
      const listed = (await p2p.listSources({ identity, statusFilter: READY })).instances;
      t.equal(listed.length, i + 1, `${JSON.stringify(workerId.slice(0, 30))} alone became ready`);
    }
    const { instances } = await p2p.listSources({ identity });
    t.same(instances.map(({ workerId }) => workerId).toSorted(), ODD_IDS.toSorted());
    t.match((await p2p.getMetadata({ mxSourceId, workerId: "hasOwnProperty" })).found, false);
  });

  t.test("odd source ids in requests are unknown ones", async (t) => {
    for (const mxSourceId of [...ODD_IDS, "0".repeat(10_000)]) {
      t.match(await p2p.getMetadata({ mxSourceId, workerId: "w" }), { found: false, mxSourceId, workerId: "w" });
      t.match(await p2p.updateStatus({ mxSourceId, workerId: "w", status: READY }), { success: false });
    }
  });

  t.test("one worker_id under two sources is two workers", async (t) => {
    const [one, other] = [identityOf({ revision: "one" }), identityOf({ revision: "other" })];
    const first = await p2p.publishMetadata({ identity: one, workerId: "shared", worker: { agentName: "first" } });
    await p2p.publishMetadata({ identity: other, workerId: "shared", worker: { agentName: "second" } });
    await p2p.updateStatus({ mxSourceId: first.mxSourceId, workerId: "shared", status: READY });
    t.equal((await p2p.listSources({ identity: one, statusFilter: READY })).instances.length, 1);
    t.equal((await p2p.listSources({ identity: other, statusFilter: READY })).instances.length, 0);
  });

  t.test("one worker_id with several ranks: List has the last published rank, Get the lowest", async (t) => {
    const identity = identityOf({ revision: "several" });
    let mxSourceId = "";
    const publish = async (workerRank: number) => {
      await sleep(2);
      ({ mxSourceId } = await p2p.publishMetadata({
        identity,
        workerId: "w",
        worker: { workerRank, agentName: `rank ${workerRank}` },
      }));
    };
    const listed = async () => (await p2p.listSources({ identity })).instances.map(({ workerRank }) => workerRank);
    const got = async () => (await p2p.getMetadata({ mxSourceId, workerId: "w" })).worker?.agentName;
    for (const rank of [3, 10, 2]) {
      await publish(rank);
      t.same(await listed(), [rank]);
    }
    t.equal(await got(), "rank 2", "lowest by number");
    await publish(10);
    t.same(await listed(), [10], "published again, it is the last");
    t.equal(await got(), "rank 2");
  });

  t.test("heartbeats of several ranks count each for itself, and change neither rule", async (t) => {
    const identity = identityOf({ revision: "beats" });
    let mxSourceId = "";
    for (const workerRank of [0, 1]) {
      ({ mxSourceId } = await p2p.publishMetadata({ identity, workerId: "w", worker: { workerRank } }));
      await sleep(2);
    }
    t.ok((await p2p.updateStatus({ mxSourceId, workerId: "w", workerRank: 1, status: READY, sourceLoad: 1 })).success);
    t.ok(
      (await p2p.updateStatus({ mxSourceId, workerId: "w", workerRank: 0, status: SourceStatus.STALE, sourceLoad: 0 }))
        .success,
    );
    t.match((await p2p.listSources({ identity })).instances, [{ workerRank: 1, sourceLoad: 1 }]);
    t.match((await p2p.getMetadata({ mxSourceId, workerId: "w" })).worker, {
      workerRank: 0,
      status: SourceStatus.STALE,
    });
  });

  t.test(
    "field case 36: two workers with one identity and one rank are both listed and fetched by worker_id",
    async (t) => {
      const identity = identityOf({ revision: "same rank" });
      const ids = ["engine-a", "engine-b"];
      let mxSourceId = "";
      for (const workerId of ids) {
        ({ mxSourceId } = await p2p.publishMetadata({
          identity,
          workerId,
          worker: { workerRank: 0, agentName: workerId },
        }));
        await p2p.updateStatus({ mxSourceId, workerId, workerRank: 0, status: READY });
      }
      const { instances } = await p2p.listSources({ identity, statusFilter: READY, workerRankFilter: 0 });
      t.same(instances.map(({ workerId }) => workerId).toSorted(), ids);
      for (const workerId of ids) {
        t.equal((await p2p.getMetadata({ mxSourceId, workerId })).worker?.agentName, workerId, "nothing overwritten");
      }
      await p2p.updateStatus({ mxSourceId, workerId: "engine-a", workerRank: 0, status: SourceStatus.STALE });
      t.match((await p2p.listSources({ identity, statusFilter: READY })).instances, [{ workerId: "engine-b" }]);
    },
  );
});
