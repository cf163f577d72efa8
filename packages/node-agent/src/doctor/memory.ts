import { formatByteSize } from "@weightline/runtime";
import { type Check, error, note, ok, warning } from "./check.ts";

/** Bytes. */
export interface MemoryFacts {
  store: string;
  limit: number;
  used: number;
  tmpfsTotal: number;
  tmpfsFree: number;
  ram: number;
  /** Undefined: there is none. */
  cgroupLimit: number | undefined;
}

/** Above this share of RAM little is left for the node's other work. */
const RAM_SHARE_MAX = 0.9;

const size = formatByteSize;

export function memoryChecks(facts: MemoryFacts): Check[] {
  return [used(facts), tmpfs(facts), ram(facts), cgroup(facts)];
}

function used({ limit, used: bytes }: MemoryFacts): Check {
  return bytes <= limit
    ? ok("memory", `holdings have ${size(bytes)} of ${size(limit)}`)
    : warning(
        "memory",
        `holdings have ${size(bytes)}, above the limit of ${size(limit)}: nothing new is taken in`,
        "evict what is not used (mxctl evict), or raise --memory-limit",
      );
}

function tmpfs({ store, limit, used: bytes, tmpfsTotal, tmpfsFree }: MemoryFacts): Check {
  const evidence = `the tmpfs of ${store} has ${size(tmpfsTotal)}, ${size(tmpfsFree)} free`;
  const cure = `make it larger (mount -o remount,size=..., or sizeLimit of the emptyDir), or lower --memory-limit`;
  if (limit > tmpfsTotal) {
    return warning(
      "store-size",
      `${evidence}, less than the limit of ${size(limit)}: what does not fit is refused before its first byte`,
      cure,
    );
  }
  return limit - bytes > tmpfsFree
    ? warning(
        "store-size",
        `${evidence}: others use it too, and the ${size(limit - bytes)} that are left of the limit do not fit`,
        `remove what else lies there, or ${cure}`,
      )
    : ok("store-size", `${evidence}, enough for the limit of ${size(limit)}`);
}

function ram({ limit, ram: bytes }: MemoryFacts): Check {
  if (limit > bytes) {
    return error(
      "ram",
      `the limit of ${size(limit)} is above the machine's ${size(bytes)} of RAM: full holdings would end other processes`,
      "lower --memory-limit",
    );
  }
  return limit > bytes * RAM_SHARE_MAX
    ? warning("ram", `the limit of ${size(limit)} leaves little of ${size(bytes)} of RAM`, "lower --memory-limit")
    : ok("ram", `the machine has ${size(bytes)} of RAM, the limit is ${size(limit)}`);
}

function cgroup({ limit, cgroupLimit }: MemoryFacts): Check {
  if (cgroupLimit === undefined) {
    return note("cgroup-memory", "the agent's cgroup has no memory limit: --memory-limit alone bounds the holdings");
  }
  return limit > cgroupLimit
    ? error(
        "cgroup-memory",
        `the agent's cgroup may have ${size(cgroupLimit)}, and tmpfs pages count there: filling to the limit of ${size(limit)} ends the mover or the agent`,
        "raise the container's memory limit, or lower --memory-limit below it",
      )
    : ok("cgroup-memory", `the agent's cgroup may have ${size(cgroupLimit)}, the limit is ${size(limit)}`);
}
