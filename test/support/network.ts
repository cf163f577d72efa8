import { runCommand } from "./program.ts";

/** Two network namespaces of this run with a veth pair between them. Needs root and iproute2. */
export interface LinkedNamespaces {
  /** Names for `ip netns exec`. */
  readonly names: readonly [string, string];
  /** Runs a program in one of them: the wrapper for startProgram. */
  wrapper(index: 0 | 1): readonly string[];
  remove(): Promise<void>;
}

export interface NamespaceOptions {
  /** Addresses with their prefix, for each side: ["10.9.0.1/24", "fd00::1/64"]. */
  addresses: readonly [readonly string[], readonly string[]];
  /** tc rate for both directions, like "2gbit". */
  rate?: string;
  /** Turns IPv6 off inside. */
  withoutIpv6?: boolean;
}

let count = 0;

async function ip(...parameters: string[]): Promise<void> {
  const done = await runCommand(["ip", ...parameters]);
  if (done.code !== 0) {
    throw new Error(`ip ${parameters.join(" ")}: ${done.stderr}`);
  }
}

export async function linkNamespaces(options: NamespaceOptions): Promise<LinkedNamespaces> {
  const id = `${process.pid.toString(36)}${count++}`;
  const names = [`wl-a-${id}`, `wl-b-${id}`] as const;
  const devices = [`wla${id}`, `wlb${id}`] as const;
  for (const name of names) {
    await ip("netns", "add", name);
    if (options.withoutIpv6 === true) {
      await ip(
        "netns",
        "exec",
        name,
        "sysctl",
        "-qw",
        "net.ipv6.conf.all.disable_ipv6=1",
        "net.ipv6.conf.default.disable_ipv6=1",
        "net.ipv6.conf.lo.disable_ipv6=1",
      );
    }
    await ip("-n", name, "link", "set", "lo", "up");
  }
  await ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1]);
  for (const i of [0, 1] as const) {
    for (const address of options.addresses[i]) {
      await ip("-n", names[i], "addr", "add", address, "dev", devices[i], ...(address.includes(":") ? ["nodad"] : []));
    }
    await ip("-n", names[i], "link", "set", devices[i], "up");
    if (options.rate !== undefined) {
      const done = await runCommand([
        "ip",
        "netns",
        "exec",
        names[i],
        "tc",
        "qdisc",
        "add",
        "dev",
        devices[i],
        "root",
        "tbf",
        "rate",
        options.rate,
        "burst",
        "4mb",
        "latency",
        "50ms",
      ]);
      if (done.code !== 0) {
        throw new Error(`tc: ${done.stderr}`);
      }
    }
  }
  return {
    names,
    wrapper: (index) => ["ip", "netns", "exec", names[index]],
    async remove() {
      for (const name of names) {
        await runCommand(["ip", "netns", "del", name]);
      }
    },
  };
}
