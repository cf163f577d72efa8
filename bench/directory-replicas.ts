// Two control planes on one Redis: how soon a change made at one is in the other's replies.
import { fromBinary } from "@bufbuild/protobuf";
import { ListSourcesResponseSchema, SourceStatus } from "@weightline/proto/p2p";
import { openRawConnection, type RawConnection } from "../test/support/http2-frames.ts";
import { callOnce } from "./call-load.ts";
import { publishWorkers } from "./directory-lists.ts";
import type { DirectoryReport } from "./directory-report.ts";
import type { Server } from "./directory-servers.ts";
import { listCall, updateCall, workerIdOf } from "./directory-workers.ts";

const GROUP = "replicas";
const WORKERS = 100;
const CHANGES = 60;
const GIVE_UP_MS = 5000;

async function lists(connection: RawConnection, workerId: string): Promise<boolean> {
  const reply = fromBinary(ListSourcesResponseSchema, await callOnce(connection, listCall(GROUP)));
  return reply.instances.some((instance) => instance.workerId === workerId);
}

/** The slowest of the changes counts: "within 100 ms" is a promise, no mean. */
export async function measureReplicas(
  report: DirectoryReport,
  one: Server,
  other: Server,
  runs: number,
): Promise<void> {
  await publishWorkers(one.port, GROUP, WORKERS);
  const [here, there] = [await openRawConnection(one.port), await openRawConnection(other.port)];
  for (let run = 0; run < runs; run++) {
    let slowest = 0;
    let late = 0;
    for (let i = 0; i < CHANGES; i++) {
      const key = { group: GROUP, number: i % WORKERS };
      const listed = Math.floor(i / 2) % 2 === 1;
      await lists(there, workerIdOf(key));
      await callOnce(here, updateCall(key, listed ? SourceStatus.READY : SourceStatus.STALE));
      const start = performance.now();
      late += (await lists(here, workerIdOf(key))) === listed ? 0 : 1;
      while ((await lists(there, workerIdOf(key))) !== listed) {
        if (performance.now() - start > GIVE_UP_MS) {
          throw new Error(`a change was not seen by the other replica within ${GIVE_UP_MS} ms`);
        }
      }
      slowest = Math.max(slowest, performance.now() - start);
      await callOnce(here, updateCall(key));
    }
    report.ask("redis: a change in the other replica's replies, slowest", "ms", slowest, { atMost: 100 });
    report.ask("redis: changes that the same replica's next reply lacked", `of ${CHANGES}`, late, { atMost: 0 });
  }
  here.close();
  there.close();
}
