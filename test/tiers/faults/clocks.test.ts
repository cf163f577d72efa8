// R10, 37: wall clocks that jump in the middle of everything (libfaketime). Lifetimes run on the monotonic clock.
import { globSync, writeFileSync } from "node:fs";
import { TransferState } from "@weightline/proto/common";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { until } from "../../support/processes.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const [library] = globSync("/usr/lib/*/faketime/libfaketimeMT.so.1");
const cluster = await createCluster();
t.teardown(() => cluster.stop());
const BYTES = 600_000_000;
const HOUR_S = 3600;
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [BYTES], data: Buffer.alloc(BYTES, 5) } });
const wanted = (modelName: string) => ({ name: { case: "model" as const, value: { modelName } } });

/** A program's own wall clock, in seconds beside the real one. */
function clock(name: string) {
  const file = `${cluster.folder}/${name}.clock`;
  const set = (seconds: number) => writeFileSync(file, `${seconds < 0 ? "" : "+"}${seconds}\n`);
  set(0);
  const env = {
    LD_PRELOAD: library ?? "",
    FAKETIME_TIMESTAMP_FILE: file,
    FAKETIME_NO_CACHE: "1",
    FAKETIME_DONT_FAKE_MONOTONIC: "1",
  };
  return { set, env };
}

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // Its end is what counts.
  }
}

/** Unix ms of a program's last line of log. */
function lastLogged(output: string): number {
  return Number([...output.matchAll(/"time":(\d+)/g)].at(-1)?.[1] ?? 0);
}

t.test(
  "clocks of agents and control plane jump, forward and back",
  { skip: library === undefined ? "no libfaketime" : false },
  async (t) => {
    const clocks = { controlPlane: clock("control-plane"), parent: clock("parent"), child: clock("child") };
    await cluster.startControlPlane([], { env: clocks.controlPlane.env });
    const parent = await cluster.startAgent("parent", ["--log-level", "debug"], { env: clocks.parent.env });
    const child = await cluster.startAgent("child", [], { env: clocks.child.env });
    await all(parent.client.load({ path, modelName: "m" }));

    const pulling = all(child.client.pull({ wanted: wanted("m") }));
    pulling.catch(() => undefined);
    await until(
      "a part of it",
      async () => ((await child.client.status({})).holdings[0]?.verifiedBytes ?? 0n) > 20_000_000n,
    );
    const at = (await child.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
    clocks.child.set(HOUR_S);
    clocks.parent.set(-HOUR_S);
    clocks.controlPlane.set(2 * HOUR_S);
    t.ok(at < BigInt(BYTES), `jumped at ${at} bytes`);
    await pulling;
    const { transfers } = await child.client.transfers({});
    t.equal(transfers.length, 1, "one transfer, nobody was left");
    t.equal(transfers[0]?.state, TransferState.DONE);
    const jumpedMs = Number(transfers[0]?.endedMs) - Number(transfers[0]?.startedMs);
    t.ok(jumpedMs > 0.9 * HOUR_S * 1000, `the jump was there: it took ${jumpedMs} ms by the wall clock`);

    // Leases, deadlines and freshness are not the wall clock's.
    t.equal(
      await child.python(
        'with agent.acquire(model_name="m") as held: print(held.outcome, held["w"].data[BYTES - 1])'.replace(
          "BYTES",
          String(BYTES),
        ),
      ),
      "held 5",
    );
    const started = performance.now();
    const late = await child.python(
      'try: agent.acquire(model_name="m2", timeout=2)\nexcept weightline.Error as e: print(type(e).__name__)',
    );
    t.equal(late, "NotFound");
    t.ok(performance.now() - started < 10_000);
    for (const seconds of [HOUR_S, -2 * HOUR_S, 0]) {
      clocks.child.set(seconds);
      clocks.controlPlane.set(-seconds);
      await new Promise((resolve) => setTimeout(resolve, 1500));
      const nodes = JSON.parse((await cluster.mxctl(["nodes", "--output", "json"])).stdout) as Array<{
        name: string;
        state: string;
      }>;
      t.same(
        nodes.map(({ name, state }) => [name, state]).sort(),
        [
          ["child", "ready"],
          ["parent", "ready"],
        ],
        `all are ready at ${seconds} s`,
      );
    }

    // A restart with a clock that went back: its epoch is above the last one all the same.
    clocks.child.set(HOUR_S);
    const { epoch } = await child.client.status({});
    child.program.kill("SIGKILL");
    await child.program.exited;
    clocks.child.set(-2 * HOUR_S);
    const again = await cluster.startAgent("child", ["--store", child.store, "--socket", child.socket], {
      env: clocks.child.env,
    });
    t.ok(lastLogged(again.program.output()) < Date.now() - HOUR_S * 1000, "its clock is behind");
    const status = await again.client.status({});
    t.ok(status.epoch > epoch, `epoch ${status.epoch} after ${epoch}`);
    t.equal(status.controlPlane, "connected");
    t.equal(await again.python('with agent.acquire(model_name="m") as held: print(held.outcome)'), "held");
  },
);
