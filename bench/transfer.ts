// 2 GiB from agent to agent on loopback, every chunk verified, beside a bare two-stream program that checks nothing.
import { statSync } from "node:fs";
import { type Agent, createCluster, freePort } from "../test/support/cluster.ts";
import { ROOT, runCommand, startCommand } from "../test/support/program.ts";
import { type BenchResult, check, cpuSeconds, machineName } from "./measure.ts";
import { writeLargeModel } from "./model.ts";

const BYTES = 2 * 2 ** 30;
const GIGABYTE = 1e9;
const BARE = `${ROOT}packages/rdma-native/build/Release/bare_streams`;

export async function moverPid(agent: Agent): Promise<number> {
  return Number((await runCommand(["pgrep", "-P", String(agent.program.pid), "-f", "mover-main"])).stdout.trim());
}

/** CPU seconds of agents and movers so far. */
export async function fleetCpu(agents: readonly Agent[]): Promise<number> {
  const pids = await Promise.all(agents.map(async (agent) => [agent.program.pid, await moverPid(agent)]));
  return pids.flat().reduce((sum, pid) => sum + cpuSeconds(pid), 0);
}

interface Measured {
  seconds: number;
  transferSeconds: number;
  cpuPerGigabyte: number;
}

/** Acquires on `child` what `parent` holds; the copy is evicted again afterwards. */
export async function acquireOnce(parent: Agent, child: Agent, bytes: number): Promise<Measured> {
  const before = await fleetCpu([parent, child]);
  const start = performance.now();
  for await (const _ of child.client.pull({ wanted: { name: { case: "model", value: { modelName: "m" } } } })) {
    // Progress.
  }
  const seconds = (performance.now() - start) / 1000;
  const cpu = (await fleetCpu([parent, child])) - before;
  const { transfers } = await child.client.transfers({});
  const last = transfers.at(-1);
  const transferSeconds = last === undefined || last.bytesPerS === 0 ? seconds : bytes / last.bytesPerS;
  await child.client.evict({ wanted: { name: { case: "model", value: { modelName: "m" } } } });
  return { seconds, transferSeconds, cpuPerGigabyte: cpu / (bytes / GIGABYTE) };
}

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    await cluster.startControlPlane();
    const flags = ["--memory-limit", "8GiB"];
    const parent = await cluster.startAgent("parent", flags);
    const child = await cluster.startAgent("child", flags);
    const scratch = cluster.store("scratch");
    const model = writeLargeModel(`${cluster.folder}/model`, BYTES);
    const bytes = statSync(model).size;
    for await (const _ of parent.client.load({ path: model, modelName: "m" })) {
      // Progress.
    }
    const [holding] = (await parent.client.status({})).holdings;
    const source = `${parent.store}/holdings/${holding?.holdingId}/files/model.safetensors`;
    const port = await freePort();
    const server = startCommand([BARE, "serve", source, String(port)]);
    await server.waitFor(/ready/);
    const webPort = await freePort();
    const web = await startNginx(cluster.folder, source, webPort);

    const ours: Measured[] = [];
    const bare: Array<{ seconds: number; cpu: number }> = [];
    const curl: number[] = [];
    // The first round warms page tables and caches, and counts for nobody.
    for (let i = -1; i < runs; i++) {
      const serverBefore = cpuSeconds(server.pid);
      const done = await runCommand([BARE, "fetch", "127.0.0.1", String(port), String(bytes), "2", scratch], {
        timeoutMs: 120_000,
      });
      const { seconds, cpu_seconds: cpu } = JSON.parse(done.stdout) as { seconds: number; cpu_seconds: number };
      bare.push({ seconds, cpu: (cpu + cpuSeconds(server.pid) - serverBefore) / (bytes / GIGABYTE) });
      await runCommand(["rm", scratch]);
      ours.push(await acquireOnce(parent, child, bytes));
      if (web !== undefined) {
        const start = performance.now();
        await runCommand(["curl", "-sf", "-o", scratch, `http://127.0.0.1:${webPort}/model.safetensors`], {
          timeoutMs: 120_000,
        });
        curl.push((performance.now() - start) / 1000);
        await runCommand(["rm", scratch]);
      }
    }
    await server.stop();
    await web?.stop();
    for (const series of [ours, bare, curl]) {
      series.shift();
    }
    const ratio = (pick: (measured: Measured) => number) =>
      ours.map((measured, i) => (bare[i]?.seconds ?? 0) / pick(measured));
    return {
      bench: "transfer",
      machine: machineName(),
      series: [
        { name: "agent to agent, from the acquire to complete", values: ours.map(({ seconds }) => seconds), unit: "s" },
        { name: "the transfer alone", values: ours.map(({ transferSeconds }) => transferSeconds), unit: "s" },
        { name: "bare two-stream program, nothing checked", values: bare.map(({ seconds }) => seconds), unit: "s" },
        ...(curl.length > 0 ? [{ name: "curl from nginx, nothing checked", values: curl, unit: "s" }] : []),
        { name: "CPU of agents and movers", values: ours.map(({ cpuPerGigabyte }) => cpuPerGigabyte), unit: "s/GB" },
        { name: "CPU of the bare program, both sides", values: bare.map(({ cpu }) => cpu), unit: "s/GB" },
      ],
      checks: [
        check(
          "rate over the bare program's, from the acquire",
          ratio(({ seconds }) => seconds),
          { atLeast: 0.8 },
        ),
        check(
          "CPU per GB over the bare program's",
          ours.map(({ cpuPerGigabyte }, i) => cpuPerGigabyte / (bare[i]?.cpu ?? 1)),
          { atMost: 1.35 },
        ),
      ],
      notes: [
        `${bytes} bytes; the transfer alone is ${ratio(({ transferSeconds }) => transferSeconds)
          .map((value) => value.toFixed(3))
          .join(", ")} of the bare program's rate`,
        ...(curl.length === 0 ? ["nginx is not there: its line is missing"] : []),
      ],
    };
  } finally {
    await cluster.stop();
  }
}

/** nginx serving the file's folder; undefined where it is not installed. */
async function startNginx(folder: string, source: string, port: number) {
  const { writeFileSync } = await import("node:fs");
  const { stdout } = await runCommand(["sh", "-c", "command -v nginx || ls /usr/sbin/nginx"]);
  if (stdout.trim() === "") {
    return undefined;
  }
  const root = source.slice(0, source.lastIndexOf("/"));
  writeFileSync(
    `${folder}/nginx.conf`,
    `daemon off; user root; pid ${folder}/nginx.pid; error_log ${folder}/nginx.log; worker_processes 2;\nevents {}\nhttp { access_log off; sendfile on; client_body_temp_path ${folder}/nginx-body; proxy_temp_path ${folder}/nginx-proxy; fastcgi_temp_path ${folder}/nginx-fastcgi; uwsgi_temp_path ${folder}/nginx-uwsgi; scgi_temp_path ${folder}/nginx-scgi; server { listen 127.0.0.1:${port}; root ${root}; } }\n`,
  );
  const program = startCommand([stdout.trim(), "-c", `${folder}/nginx.conf`]);
  for (let i = 0; i < 50; i++) {
    const reply = await runCommand(["curl", "-sfI", `http://127.0.0.1:${port}/model.safetensors`]);
    if (reply.code === 0) {
      return program;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await program.stop();
  return undefined;
}
