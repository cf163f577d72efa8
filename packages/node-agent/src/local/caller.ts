import { createContextKey } from "@connectrpc/connect";
import type { PeerProcess } from "@weightline/rdma-native";
import { WeightlineError } from "@weightline/runtime";
import type { LeaseOwner } from "../leases/lease-table.ts";
import { isPodCgroup, podKey } from "./pod-key.ts";

/** What a caller may do (architecture.md, "Who may call what"). */
export type CallerRole = "pod" | "operator" | "other";

/** Those whom caps count together: all processes of a pod, or one process outside pods. */
export interface CallerGroup {
  /** "pod 0d1c…", "process 4711". */
  readonly key: string;
  /** Counts a fill that one of its calls begins; the returned function ends it. Throws ResourceExhausted at the cap. */
  beginFill(): () => void;
}

/**
 * Who is at the other end of a local connection, as the kernel said when it was accepted: the process that connected, in
 * the cgroup that it was in then. Neither moving to another cgroup nor handing the socket to another process changes it.
 */
export interface Caller {
  owner: LeaseOwner;
  role: CallerRole;
  group: CallerGroup;
  /** Aborted when the connection ends: calls that wait behind another's answer are told by nothing else. */
  closed: AbortSignal;
}

/** The caller in a handler's context. */
export const callerKey = createContextKey<Caller | undefined>(undefined, { description: "the local caller" });

/** The agent's own process, as far as others are judged by it. */
export interface AgentProcess {
  uid: number;
  cgroup: string;
}

/**
 * The role from what the kernel says: processes in a pod's cgroup are pods, unless it is the agent's own container's;
 * outside pods uid 0 and the agent's uid are operators.
 */
export function roleOf(peer: Pick<PeerProcess, "uid" | "cgroup">, agent: AgentProcess): CallerRole {
  if (isPodCgroup(peer.cgroup) && peer.cgroup !== agent.cgroup) {
    return "pod";
  }
  return peer.uid === 0 || peer.uid === agent.uid ? "operator" : "other";
}

/** The key of the group that the caps of a process count for. */
export function groupKeyOf(
  peer: Pick<PeerProcess, "pid" | "cgroup">,
  role: CallerRole,
  agent: Pick<AgentProcess, "cgroup">,
): string {
  return role === "pod" ? podKey(peer.cgroup, agent.cgroup) : `process ${peer.pid}`;
}

/** Throws PermissionDenied unless the caller may do what only operators may. */
export function requireOperator(caller: Caller, call: string): void {
  if (caller.role !== "operator") {
    const who = caller.role === "pod" ? "a process in a pod" : `uid ${caller.owner.peer.uid}`;
    throw new WeightlineError("PermissionDenied", `${who} may not call ${call}`, {
      field: "caller",
      value: `pid ${caller.owner.peer.pid}`,
      limit: "uid 0 or the agent's, outside pods or in the agent's own container",
      wayOut: "run it on the node, or with kubectl exec in the agent's container",
    });
  }
}
