// Links that break in the middle of a transfer: silence, a reset, a host that vanishes, a peer that stops; and 42, a peer that
// answers but whose data port drops everything. Each ends by its deadline, and the rest comes from another holder into the
// same segments.
import { HoldingState, TransferState } from "@weightline/proto/common";
import t, { type Test } from "tap";
import { type Agent, createCluster } from "../../support/cluster.ts";
import { linkNamespaces } from "../../support/network.ts";
import { moverOf, processState, until } from "../../support/processes.ts";
import { runCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";
import { allocatedBytes } from "../../support/store-files.ts";

const BYTES = 60_000_000;
const STALL_MS = 1000;
/** At most two chunks of each of two streams come twice; frames, layouts and openings beside. */
const MOST_BYTES = BYTES * 1.002 + 4 * 65_536;
const FAR = "10.96.0.1";
const NEAR = "10.96.0.2";
const FAR_DATA_PORT = 7001;

const network = await linkNamespaces({ addresses: [[`${FAR}/24`], [`${NEAR}/24`]], rate: "400mbit" });
const cluster = await createCluster();
t.teardown(async () => {
  await cluster.stop();
  await network.remove();
});
const inside = (index: 0 | 1) => ({ wrapper: network.wrapper(index) });
await cluster.startControlPlane(["--host", NEAR, "--port", "8001", "--metrics-port", "9401"], inside(1));

const wanted = { name: { case: "model" as const, value: { modelName: "m" } } };
const flagsFor = (host: string) => [
  ...["--control-plane", `${NEAR}:8001`, "--bind", host, "--host", host],
  ...["--stall-timeout", `${STALL_MS}ms`],
];
const farFlags = [...flagsFor(FAR), "--port", "7000", "--data-port", String(FAR_DATA_PORT)];

const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [BYTES] } });

async function all(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream) {
    // Its end is what counts.
  }
}

// "a-far" comes first by its name, and is behind the link that breaks; "b-near" is on the child's own host.
let far = await cluster.startAgent("a-far", farFlags, inside(0));
let near = await cluster.startAgent("b-near", flagsFor(NEAR), inside(1));
await all(far.client.load({ path, modelName: "m" }));
await all(near.client.load({ path, modelName: "m" }));

async function nft(index: 0 | 1, rules: string): Promise<void> {
  const done = await runCommand([...network.wrapper(index), "nft", "-f", "-"], { input: rules });
  if (done.code !== 0) {
    throw new Error(`nft: ${done.stderr}`);
  }
}

/** Packets that a rule of ours met. */
async function packets(index: 0 | 1): Promise<number> {
  const { stdout } = await runCommand([...network.wrapper(index), "nft", "list", "table", "inet", "broken"]);
  return [...stdout.matchAll(/counter packets (\d+)/g)].reduce((sum, [, n]) => sum + Number(n), 0);
}

const SILENCE = `table inet broken {
  chain in { type filter hook input priority 0; tcp dport ${FAR_DATA_PORT} counter drop; }
  chain out { type filter hook output priority 0; tcp sport ${FAR_DATA_PORT} counter drop; }
}`;
const RESET = `table inet broken {
  chain in { type filter hook input priority 0; tcp dport ${FAR_DATA_PORT} counter reject with tcp reset; }
}`;
const MEND = "delete table inet broken";

interface Broken {
  /** Breaks it; gives what proves that it is broken. */
  break: () => Promise<void>;
  mend: () => Promise<void>;
  /** What the transfer from the far one must have ended with. */
  error: RegExp;
  /** From the break to the end of the transfer. */
  withinMs: number;
  /** False: it is broken before the child dials. */
  inTheMiddle?: boolean;
}

let children = 0;

/** Peak of the bytes that a store takes, looked at all the time. */
function watchPeak(store: string): () => number {
  let peak = 0;
  const timer = setInterval(() => {
    peak = Math.max(peak, allocatedBytes(store));
  }, 5);
  return () => {
    clearInterval(timer);
    return peak;
  };
}

async function goesOn(t: Test, broken: Broken): Promise<Agent> {
  const limit = String(Math.round(1.2 * BYTES));
  const child = await cluster.startAgent(
    `child-${children++}`,
    [...flagsFor(NEAR), "--memory-limit", limit],
    inside(1),
  );
  const peak = watchPeak(child.store);
  if (broken.inTheMiddle === false) {
    await broken.break();
  }
  const pulling = all(child.client.pull({ wanted }));
  pulling.catch(() => undefined);
  if (broken.inTheMiddle !== false) {
    await until(
      "a part of it",
      async () => ((await child.client.status({})).holdings[0]?.verifiedBytes ?? 0n) > 5_000_000n,
    );
    await broken.break();
  }
  const brokenAt = performance.now();
  const at = (await child.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
  t.ok(at < BigInt(BYTES), `broken at ${at} bytes`);
  await until("the end of the first transfer", async () =>
    (await child.client.transfers({})).transfers.some(
      ({ parent, state }) => parent === "a-far" && state === TransferState.FAILED,
    ),
  );
  const endedMs = performance.now() - brokenAt;
  t.ok(endedMs < broken.withinMs, `it ended after ${Math.round(endedMs)} ms`);
  await pulling;
  const { transfers } = await child.client.transfers({});
  t.match(transfers[0], { parent: "a-far", error: broken.error });
  t.match(transfers.at(-1), { parent: "b-near", state: TransferState.DONE });
  const moved = transfers.reduce((sum, { networkBytes }) => sum + Number(networkBytes), 0);
  t.ok(moved <= MOST_BYTES, `${moved} bytes came for ${BYTES}`);
  t.equal(new Set(transfers.map(({ holdingId }) => holdingId)).size, 1, "all into one holding");
  t.same(
    (await child.client.status({})).holdings.map(({ state }) => state),
    [HoldingState.COMPLETE],
  );
  const most = peak();
  t.ok(most >= BYTES && most <= 1.05 * BYTES, `the store took ${most} bytes at most`);
  await broken.mend();
  return child;
}

t.test("a link that is silent", async (t) => {
  const child = await goesOn(t, {
    break: () => nft(0, SILENCE),
    async mend() {
      t.ok((await packets(0)) > 0, `${await packets(0)} packets were dropped`);
      await nft(0, MEND);
    },
    error: /said nothing for 1000 ms/,
    withinMs: 3 * STALL_MS,
  });
  await child.program.stop();
});

t.test("a reset in the middle of a chunk", async (t) => {
  const child = await goesOn(t, {
    break: () => nft(0, RESET),
    async mend() {
      t.ok((await packets(0)) > 0, `${await packets(0)} packets were answered with a reset`);
      await nft(0, MEND);
    },
    error: /Connection reset by peer/,
    withinMs: 3 * STALL_MS,
  });
  await child.program.stop();
});

t.test("42: a peer that answers, but whose data port drops everything", async (t) => {
  const child = await goesOn(t, {
    break: () => nft(0, SILENCE),
    async mend() {
      t.ok((await packets(0)) > 0, `${await packets(0)} packets were dropped`);
      await nft(0, MEND);
    },
    error: new RegExp(`data port ${FAR}:${FAR_DATA_PORT} cannot be reached: no answer within 3000 ms`),
    withinMs: 6000,
    inTheMiddle: false,
  });
  const metrics = await runCommand([
    ...network.wrapper(1),
    "curl",
    "-s",
    `http://${NEAR}:${child.metricsPort}/metrics`,
  ]);
  t.match(metrics.stdout, /weightline_fallbacks_total\{from="peer",to="peer",reason="unavailable"\} 1/);
  await child.program.stop();
});

t.test("a peer of which agent and mover are stopped", async (t) => {
  const pids = [far.program.pid, (await moverOf(far.program.pid)) ?? 0];
  const child = await goesOn(t, {
    async break() {
      for (const pid of pids) {
        process.kill(pid, "SIGSTOP");
      }
      await until("their stop", () => pids.every((pid) => processState(pid) === "T"));
    },
    async mend() {
      for (const pid of pids) {
        process.kill(pid, "SIGCONT");
      }
    },
    error: /said nothing for 1000 ms/,
    withinMs: 3 * STALL_MS,
  });
  await child.program.stop();
});

t.test("a host that vanishes, and is back under the same address", async (t) => {
  const device = (await runCommand([...network.wrapper(0), "sh", "-c", "ls /sys/class/net | grep ^wl"])).stdout.trim();
  const link = async (state: "up" | "down") => {
    const done = await runCommand([...network.wrapper(0), "ip", "link", "set", device, state]);
    t.equal(done.code, 0, done.stderr);
  };
  const child = await goesOn(t, {
    async break() {
      await link("down");
      // Nothing tells the child: neither a closed connection nor a reset gets through.
      far.program.kill("SIGKILL");
      await far.program.exited;
    },
    mend: () => link("up"),
    error: /said nothing for 1000 ms/,
    withinMs: 3 * STALL_MS,
  });
  far = await cluster.startAgent("a-far", ["--store", far.store, "--socket", far.socket, ...farFlags], inside(0));
  await near.program.stop();
  await child.client.evict({ wanted });
  const started = performance.now();
  await all(child.client.pull({ wanted }));
  const tookMs = Math.round(performance.now() - started);
  t.ok(tookMs < 15_000, `the old connections to that address are in nobody's way: ${tookMs} ms`);
  t.match((await child.client.transfers({})).transfers.at(-1), { parent: "a-far", state: TransferState.DONE });
  await child.program.stop();
  near = await cluster.startAgent(
    "b-near",
    ["--store", near.store, "--socket", near.socket, ...flagsFor(NEAR)],
    inside(1),
  );
});

t.test("a child whose host vanishes: its parent lets its streams go", async (t) => {
  const mover = (await moverOf(near.program.pid)) ?? 0;
  const threads = async () => Number((await runCommand(["sh", "-c", `ls /proc/${mover}/task | wc -l`])).stdout);
  const before = await threads();
  const child = await cluster.startAgent("a-lost", flagsFor(FAR), inside(0));
  await far.program.stop();
  const pulling = all(child.client.pull({ wanted })).catch(() => "ended with its agent");
  await until(
    "a part of it",
    async () => ((await child.client.status({})).holdings[0]?.verifiedBytes ?? 0n) > 5_000_000n,
  );
  t.ok((await threads()) > before, "it is served");
  const device = (await runCommand([...network.wrapper(0), "sh", "-c", "ls /sys/class/net | grep ^wl"])).stdout.trim();
  await runCommand([...network.wrapper(0), "ip", "link", "set", device, "down"]);
  child.program.kill("SIGKILL");
  await child.program.exited;
  await pulling;
  await until("the end of its streams", async () => (await threads()) <= before, 60_000);
  t.ok((await threads()) <= before);
});
