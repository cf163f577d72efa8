import { type Check, note, ok, warning } from "./check.ts";

export interface ProcessFacts {
  /** True in the host's own pid and cgroup namespaces. */
  hostPids: boolean;
  hostCgroups: boolean;
  /** Kubernetes runs this agent. */
  inKubernetes: boolean;
}

const CURE = "set hostPID: true for the agent's pod, and mount the host's /sys/fs/cgroup";

/** Whether pods' processes and their cgroups can be seen: leases and roles come from them. */
export function processCheck({ hostPids, hostCgroups, inKubernetes }: ProcessFacts): Check {
  if (hostPids) {
    return ok(
      "processes",
      `the host's processes are seen${hostCgroups ? ", and their cgroups by their whole path" : "; cgroups by paths relative to the agent's, which is enough to know pods"}`,
    );
  }
  const evidence = "the agent is in a pid namespace of its own: it cannot see processes outside it";
  return inKubernetes
    ? warning("processes", `${evidence}, so pods cannot be told apart and their leases not be ended with them`, CURE)
    : note("processes", `${evidence}; that is right when all that use it are in there too`, CURE);
}
