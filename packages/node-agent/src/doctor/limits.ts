import { formatByteSize } from "@weightline/runtime";
import { type Check, note, ok, warning } from "./check.ts";

/** Soft limits of one process, as /proc/PID/limits has them. */
export interface ProcessLimits {
  /** Bytes; Infinity for none. */
  memlock: number;
  openFiles: number;
}

/** The limits in a /proc/PID/limits; undefined where a line is missing. */
export function readLimits(text: string): ProcessLimits | undefined {
  const soft = (name: string) => {
    const [, value] = new RegExp(`^${name} +(\\S+)`, "m").exec(text) ?? [];
    return value === undefined ? undefined : value === "unlimited" ? Number.POSITIVE_INFINITY : Number(value);
  };
  const memlock = soft("Max locked memory");
  const openFiles = soft("Max open files");
  return memlock === undefined || openFiles === undefined ? undefined : { memlock, openFiles };
}

export interface LimitFacts {
  agent: ProcessLimits | undefined;
  /** Undefined while no mover runs. */
  mover: ProcessLimits | undefined;
  /** The capability IPC_LOCK, which agent and mover have alike: the limit of locked memory does not bind them. */
  ipcLock: boolean;
  /** Bytes for all holdings: what RDMA would have to lock. */
  memoryLimitBytes: number;
  /** Where NIXL was found, or undefined. */
  nixl: string | undefined;
  /** Where it was looked for. */
  nixlPlaces: readonly string[];
}

/** 1024 local connections, a pidfd for each, and a holding's 4096 segments while they are handed over. */
const AGENT_FILES = 8192;
/** Streams, and the segments of holdings that are filled and served. */
const MOVER_FILES = 8192;

const SLOWER = "the stream transport is used, which is the slower path";

export function limitChecks(facts: LimitFacts): Check[] {
  return [nixl(facts), memlock("agent", facts.agent, facts), memlock("mover", facts.mover, facts), ...openFiles(facts)];
}

function nixl({ nixl: path, nixlPlaces }: LimitFacts): Check {
  return path === undefined
    ? note(
        "nixl",
        `NIXL is not installed (looked in ${nixlPlaces.join(", ")}): ${SLOWER}`,
        "nothing is missing for TCP; RDMA needs NIXL, and a version of this program that uses it",
      )
    : note("nixl", `NIXL is at ${path}; this version does not use it: ${SLOWER}`);
}

function memlock(who: string, limits: ProcessLimits | undefined, facts: LimitFacts): Check {
  const name = `memlock-${who}`;
  if (limits === undefined) {
    return note(name, `the limit of locked memory of the ${who} is not known: it does not run now`);
  }
  const { memlock: bytes } = limits;
  if (bytes >= facts.memoryLimitBytes) {
    const shown = Number.isFinite(bytes) ? formatByteSize(bytes) : "unlimited";
    return ok(name, `the ${who} may lock ${shown} of memory (RLIMIT_MEMLOCK)`);
  }
  const limit = `the ${who} may lock ${formatByteSize(bytes)} of memory (RLIMIT_MEMLOCK)`;
  if (facts.ipcLock) {
    return note(name, `${limit}, which the capability IPC_LOCK lifts; this version locks none: ${SLOWER}`);
  }
  const evidence = `${limit}, holdings may have ${formatByteSize(facts.memoryLimitBytes)}: RDMA cannot register them, and ${SLOWER}`;
  const cure =
    "raise it where the agent is started: `ulimit -l unlimited`, LimitMEMLOCK=infinity of containerd's unit, or the capability IPC_LOCK";
  // Without NIXL nothing would lock memory: it is only to be known.
  return facts.nixl === undefined ? note(name, evidence, cure) : warning(name, evidence, cure);
}

function openFiles({ agent, mover }: LimitFacts): Check[] {
  const check = (who: string, limits: ProcessLimits | undefined, least: number): Check => {
    const name = `open-files-${who}`;
    if (limits === undefined) {
      return note(name, `the limit of open files of the ${who} is not known: it does not run now`);
    }
    const { openFiles: count } = limits;
    return count >= least
      ? ok(name, `the ${who} may open ${Number.isFinite(count) ? count : "any number of"} files (RLIMIT_NOFILE)`)
      : warning(
          name,
          `the ${who} may open ${count} files (RLIMIT_NOFILE); ${least} are needed for its full number of connections and segments`,
          `start it with a limit of at least ${least}: \`ulimit -n ${least}\`, or LimitNOFILE of the container runtime's unit`,
        );
  };
  return [check("agent", agent, AGENT_FILES), check("mover", mover, MOVER_FILES)];
}
