// Faults injected into the mover's system calls by strace; its log proves that they happened.
import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { type Agent, createCluster } from "../../support/cluster.ts";
import { moverOf } from "../../support/processes.ts";
import { runCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";
import { trace } from "../../support/tracing.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [20_000_000] } });
const agent = await cluster.startAgent("a", ["--load-threads", "1"]);

async function moverPid(of: Agent): Promise<number> {
  return (await moverOf(of.program.pid)) ?? 0;
}

let traces = 0;

/** Injects into the calls of the mover and all its threads, those that name a path where one is given. */
async function inject(expression: string, options: { only?: string } = {}) {
  const [call = ""] = expression.split(":");
  const log = `${cluster.folder}/trace-${traces++}`;
  const tracing = await trace(await moverPid(agent), log, { calls: [call], inject: expression, ...options });
  return {
    ...tracing,
    /** Calls that were made to fail. */
    count: () =>
      tracing
        .text()
        .split("\n")
        .filter((line) => line.includes("(INJECTED)")).length,
  };
}

const load = (name: string) => cluster.mxctl(["load", path, "--model-name", name], agent);

async function nothingLeft(t: Test, before: number): Promise<void> {
  for (let i = 0; i < 50 && readdirSync(`${agent.store}/holdings`).length > before; i++) {
    await sleep(100);
  }
  t.equal(readdirSync(`${agent.store}/holdings`).length, before, "nothing is left behind");
}

t.test("18: a file system that cannot be mapped: the source is only ever read", async (t) => {
  const fault = await inject("mmap:error=ENODEV", { only: path });
  const done = await load("unmappable");
  await fault.stop();
  t.equal(done.code, 0, done.stderr);
  t.equal(fault.count(), 0, "no process of ours mapped the source file");
  // The injection itself works: a process that maps the file is refused.
  const proof = await runCommand([
    "strace",
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "-P",
    path,
    "-e",
    "trace=mmap",
    "-e",
    "inject=mmap:error=ENODEV",
    "python3",
    "-c",
    "import mmap,sys\nf=open(sys.argv[1],'rb')\ntry: mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print('mapped')\nexcept OSError as e: print(e.errno)",
    path,
  ]);
  t.equal(proof.stdout.trim(), "19");
});

t.test("20: ESTALE once: opened again by its path, compared, gone on", async (t) => {
  const fault = await inject("pread64:error=ESTALE:when=5", { only: path });
  const done = await load("stale");
  await fault.stop();
  t.equal(fault.count(), 1, "it was injected");
  t.equal(done.code, 0, done.stderr);
});

t.test("20: EIO for ever: file, offset, errno; the next load starts fresh", async (t) => {
  const before = readdirSync(`${agent.store}/holdings`).length;
  const fault = await inject("pread64:error=EIO:when=6+", { only: path });
  const done = await load("broken");
  await fault.stop();
  t.ok(fault.count() >= 1, "it was injected");
  t.equal(done.code, 4);
  t.match(done.stderr, new RegExp(`reading ${path} at offset \\d+ failed: Input/output error \\(errno 5\\)`));
  await nothingLeft(t, before);
  t.equal((await load("broken")).code, 0);
});

t.test(
  "no memory in the middle of a load: ENOSPC is an error in words, nothing half-visible, the mover lives",
  async (t) => {
    const before = readdirSync(`${agent.store}/holdings`).length;
    const mover = await moverPid(agent);
    const fault = await inject("fallocate:error=ENOSPC:when=4+");
    const other = `${cluster.folder}/other.safetensors`;
    writeTensors(other, { w: { dtype: "U8", shape: [60_000_000] } });
    const done = await cluster.mxctl(["load", other, "--model-name", "full"], agent);
    await fault.stop();
    t.ok(fault.count() >= 1, "it was injected");
    t.equal(done.code, 1);
    t.match(
      done.stderr,
      /taking \d+ bytes of memory for other.safetensors: No space left on device; way out: evict a model/,
    );
    await nothingLeft(t, before);
    t.equal(await moverPid(agent), mover, "the same mover");
    t.equal((await cluster.mxctl(["load", other, "--model-name", "full"], agent)).code, 0);
  },
);
