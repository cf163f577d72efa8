import { type Check, error, note, ok, warning } from "./check.ts";

/** What is known of the kernel and of this process's rights. */
export interface KernelFacts {
  /** "6.8.0-45-generic". */
  release: string;
  /** CapEff of /proc/self/status. */
  capabilities: bigint;
  /** How descriptors given to pods are protected, as it is. */
  protection: "read-only mount" | "detached read-only mount" | "plain";
  /** How the caller's process was recognised, as it was. */
  callerSource: "SO_PEERPIDFD" | "pidfd_open";
}

/** Numbers of linux/capability.h. */
export const CAP_IPC_LOCK = 14n;
const CAP_LINUX_IMMUTABLE = 9n;
const CAP_SYS_ADMIN = 21n;

/** Kernels that brought what is used here. */
const OPENAT2 = [5, 6] as const;
const MOUNT_SETATTR = [5, 12] as const;
const TMPFS_FLAGS = [6, 0] as const;
const PEERPIDFD = [6, 5] as const;
const PIDFD_INFO = [6, 13] as const;

type Version = readonly [number, number];

function versionOf(release: string): Version {
  const [, major = "0", minor = "0"] = /^(\d+)\.(\d+)/.exec(release) ?? [];
  return [Number(major), Number(minor)];
}

function isAtLeast([major, minor]: Version, [leastMajor, leastMinor]: Version): boolean {
  return major > leastMajor || (major === leastMajor && minor >= leastMinor);
}

const text = ([major, minor]: Version) => `${major}.${minor}`;

/** True when a set like CapEff has the capability. */
export function hasCapability(set: bigint, capability: bigint): boolean {
  return (set >> capability) % 2n === 1n;
}

export function kernelChecks(facts: KernelFacts): Check[] {
  const version = versionOf(facts.release);
  const has = (capability: bigint) => hasCapability(facts.capabilities, capability);
  return [
    kernel(facts.release, version),
    callers(facts, version),
    cgroups(facts.release, version),
    flag(facts.release, version, has(CAP_LINUX_IMMUTABLE)),
    protection(facts, version, has(CAP_SYS_ADMIN)),
  ];
}

function kernel(release: string, version: Version): Check {
  return isAtLeast(version, OPENAT2)
    ? ok("kernel", `kernel ${release} has openat2: paths of peers and models cannot leave their folder`)
    : error(
        "kernel",
        `kernel ${release} has no openat2 (${text(OPENAT2)}): the mover opens no holding`,
        `run a kernel of at least ${text(OPENAT2)}`,
      );
}

function callers({ callerSource, release }: KernelFacts, version: Version): Check {
  if (callerSource === "SO_PEERPIDFD") {
    return ok("callers", "processes on the socket are known by a pidfd of the kernel (SO_PEERPIDFD)");
  }
  return note(
    "callers",
    `kernel ${release} ${isAtLeast(version, PEERPIDFD) ? "gave" : "has"} no SO_PEERPIDFD: a process is opened by its number and looked at twice, which holds`,
    `a kernel of ${text(PEERPIDFD)} or later says it itself`,
  );
}

function cgroups(release: string, version: Version): Check {
  return isAtLeast(version, PIDFD_INFO)
    ? ok("cgroups", `kernel ${release} has PIDFD_GET_INFO; this version reads cgroups from /proc all the same`)
    : note(
        "cgroups",
        `kernel ${release} has no PIDFD_GET_INFO (${text(PIDFD_INFO)}): whether a caller is a pod's is read from /proc, which needs the host's processes (see processes)`,
      );
}

function flag(release: string, version: Version, mayFlag: boolean): Check {
  const lost = "complete files carry no immutable flag, so every start digests all holdings before it serves them";
  if (!isAtLeast(version, TMPFS_FLAGS)) {
    return note(
      "immutable-flag",
      `kernel ${release} has no immutable flag on tmpfs (${text(TMPFS_FLAGS)}): ${lost}`,
      `run a kernel of at least ${text(TMPFS_FLAGS)} for starts that read nothing`,
    );
  }
  return mayFlag
    ? ok("immutable-flag", "complete files get the immutable flag: a restart serves them unread")
    : warning(
        "immutable-flag",
        `this process has no CAP_LINUX_IMMUTABLE: ${lost}`,
        "give the agent's container the capability LINUX_IMMUTABLE",
      );
}

function protection({ protection: level, release }: KernelFacts, version: Version, mayMount: boolean): Check {
  if (level !== "plain") {
    return ok("protection", `descriptors for pods come through a ${level}: nobody can open them again for writing`);
  }
  const why = !isAtLeast(version, MOUNT_SETATTR)
    ? `kernel ${release} has no mount_setattr (${text(MOUNT_SETATTR)})`
    : mayMount
      ? "no detached read-only mount could be made of the store"
      : "this process has no CAP_SYS_ADMIN";
  return warning(
    "protection",
    `descriptors for pods are plain read-only ones, as ${why}: a process of the agent's own user could open them again for writing`,
    "mount the store a second time, read-only, and give that folder as --store-ro",
  );
}
