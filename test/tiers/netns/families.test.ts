// 29: IPv6 off, and IPv6 alone: both start, announce, pull; addresses with brackets everywhere.
import t from "tap";
import { type Agent, createCluster } from "../../support/cluster.ts";
import { linkNamespaces, type NamespaceOptions } from "../../support/network.ts";
import { mxctl, type ProgramOptions, runCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const FAMILIES: Array<[string, NamespaceOptions, string, string, RegExp]> = [
  [
    "IPv6 off",
    { addresses: [["10.98.0.1/24"], ["10.98.0.2/24"]], withoutIpv6: true },
    "10.98.0.1",
    "10.98.0.2",
    /^10\.98\.0\.2:\d+$/,
  ],
  [
    "IPv6 alone",
    { addresses: [["fd00:98::1/64"], ["fd00:98::2/64"]] },
    "[fd00:98::1]",
    "[fd00:98::2]",
    /^\[fd00:98::2\]:\d+$/,
  ],
];

for (const [name, options, one, two, address] of FAMILIES) {
  t.test(name, async (t) => {
    const network = await linkNamespaces(options);
    const cluster = await createCluster();
    t.teardown(async () => {
      await cluster.stop();
      await network.remove();
    });
    const inside = (index: 0 | 1): ProgramOptions => ({ wrapper: network.wrapper(index) });
    // No --host: what the programs do by themselves is what is tested. The cluster's default flags are overridden.
    const controlPlane = await cluster.startControlPlane(
      ["--host", "", "--port", "8001", "--metrics-port", "9401"],
      inside(0),
    );
    t.match(controlPlane.output(), /"msg":"ready"/);
    const flags = ["--control-plane", `${one}:8001`, "--bind", ""];
    const first: Agent = await cluster.startAgent("first", flags, inside(0));
    const second: Agent = await cluster.startAgent("second", flags, inside(1));
    t.match(second.address, address, "the address that peers dial");
    t.match(second.dataAddress, address);
    const path = `${cluster.folder}/m.safetensors`;
    writeTensors(path, { w: { dtype: "U8", shape: [3_000_000] } });
    t.equal((await mxctl(["--socket", first.socket, "load", path, "--model-name", "m"], inside(0))).code, 0);
    const pulled = await mxctl(["--socket", second.socket, "pull", "--model-name", "m"], inside(1));
    t.equal(pulled.code, 0, pulled.stderr);
    const nodes = await mxctl(["--endpoint", `${one}:8001`, "nodes", "--output", "json"], inside(1));
    t.equal(nodes.code, 0, nodes.stderr);
    t.match(JSON.parse(nodes.stdout).map((node: { address: string }) => node.address)[1], address);
    const filled = await mxctl(["--endpoint", `${one}:8001`, "pull", "--model-name", "m", "--nodes", "all"], inside(1));
    t.equal(filled.code, 0, filled.stderr);
    const metrics = await runCommand([
      ...network.wrapper(0),
      "curl",
      "-gs",
      `http://${two}:${second.metricsPort}/readyz`,
    ]);
    t.match(metrics.stdout, /"ready":true/);
  });
}

t.test(
  "a link that goes silent in the middle of a transfer: it ends by its deadline, and goes on when the link is back",
  async (t) => {
    const network = await linkNamespaces({ addresses: [["10.97.0.1/24"], ["10.97.0.2/24"]], rate: "400mbit" });
    const cluster = await createCluster();
    t.teardown(async () => {
      await cluster.stop();
      await network.remove();
    });
    await cluster.startControlPlane(["--host", "10.97.0.1", "--port", "8001", "--metrics-port", "9401"], {
      wrapper: network.wrapper(0),
    });
    const flags = (host: string) => [
      "--control-plane",
      "10.97.0.1:8001",
      "--bind",
      host,
      "--host",
      host,
      "--stall-timeout",
      "1s",
    ];
    const first = await cluster.startAgent("first", flags("10.97.0.1"), { wrapper: network.wrapper(0) });
    const second = await cluster.startAgent("second", flags("10.97.0.2"), { wrapper: network.wrapper(1) });
    const path = `${cluster.folder}/m.safetensors`;
    writeTensors(path, { w: { dtype: "U8", shape: [100_000_000] } });
    await mxctl(["--socket", first.socket, "load", path, "--model-name", "m"]);
    const pulling = mxctl(["--socket", second.socket, "pull", "--model-name", "m"]);
    for (let i = 0; i < 500 && ((await second.client.status({})).holdings[0]?.verifiedBytes ?? 0n) < 10_000_000n; i++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const device = (
      await runCommand([...network.wrapper(0), "sh", "-c", "ls /sys/class/net | grep ^wl"])
    ).stdout.trim();
    // Frames into a link without a neighbour's address go nowhere: silence, not a reset.
    const cut = await runCommand([
      ...network.wrapper(0),
      "ip",
      "neigh",
      "replace",
      "10.97.0.2",
      "lladdr",
      "02:00:00:00:00:99",
      "nud",
      "permanent",
      "dev",
      device,
    ]);
    t.equal(cut.code, 0, cut.stderr);
    const at = (await second.client.status({})).holdings[0]?.verifiedBytes ?? 0n;
    t.ok(at > 0n && at < 100_000_000n, `cut at ${at}`);
    for (let i = 0; i < 100 && (await second.client.transfers({})).transfers.every(({ error }) => error === ""); i++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const { transfers } = await second.client.transfers({});
    t.match(transfers[0]?.error, /said nothing for 1000 ms/, "ended by its deadline");
    await runCommand([...network.wrapper(0), "ip", "neigh", "del", "10.97.0.2", "dev", device]);
    const done = await pulling;
    t.equal(done.code, 0, done.stderr);
    const moved = (await second.client.transfers({})).transfers.reduce(
      (sum, { networkBytes }) => sum + networkBytes,
      0n,
    );
    t.ok(moved < 100_000_000n + 20_000_000n, "what was verified did not come again");
  },
);
