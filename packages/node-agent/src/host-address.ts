import { createSocket } from "node:dgram";
import { isIPv6 } from "node:net";
import { isLoopback, isWildcard, type NetworkAddress, WeightlineError } from "@weightline/runtime";

/** This machine's address on the route to another; nothing is sent. Undefined when there is no route. */
function routeAddress({ host, port }: NetworkAddress, family: "udp4" | "udp6"): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = createSocket(family);
    const end = (address: string | undefined) => {
      socket.close();
      resolve(address);
    };
    socket.once("error", () => end(undefined));
    socket.connect(port, host, () => end(socket.address().address));
  });
}

/**
 * The address that peers dial: what is configured, else a bound address, else the one on the route to the control plane.
 * A loopback address is right only when the control plane's is loopback too.
 */
export async function advertisedHost(
  configured: string,
  bind: string,
  controlPlane: readonly NetworkAddress[],
): Promise<string> {
  const localOnly = controlPlane.every(({ host }) => isLoopback(host));
  if (configured !== "") {
    if (isLoopback(configured) && !localOnly) {
      throw new WeightlineError(
        "InvalidArgument",
        `--host ${configured} is a loopback address, the control plane's is not: no peer could dial it`,
        {
          field: "--host",
          value: configured,
          wayOut: "give this node's address in the cluster",
        },
      );
    }
    return configured;
  }
  if (bind !== "" && !isWildcard(bind)) {
    return bind;
  }
  for (const target of controlPlane) {
    const families = isIPv6(target.host) ? (["udp6"] as const) : (["udp4", "udp6"] as const);
    for (const family of families) {
      const address = await routeAddress(target, family);
      if (address !== undefined && !isWildcard(address)) {
        return address;
      }
    }
  }
  if (localOnly) {
    return "127.0.0.1";
  }
  throw new WeightlineError("InvalidArgument", "no route to the control plane tells this node's address", {
    field: "--host",
    wayOut: "give --host, or make --control-plane resolvable",
  });
}
