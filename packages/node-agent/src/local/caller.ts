import { createContextKey } from "@connectrpc/connect";
import type { PeerProcess } from "@weightline/rdma-native";
import { WeightlineError } from "@weightline/runtime";
import type { LeaseOwner } from "../leases/lease-table.ts";

/** What a caller may do (architecture.md, "Who may call what"). */
export type CallerRole = "pod" | "operator" | "other";

/** Who is at the other end of a local connection. */
export interface Caller {
  owner: LeaseOwner;
  role: CallerRole;
}

/** The caller in a handler's context. */
export const callerKey = createContextKey<Caller | undefined>(undefined, { description: "the local caller" });

/**
 * True for a pod's cgroup: kubelet puts pods below a folder whose name begins with kubepods. A path that is not known, or
 * that begins outside this process's cgroup namespace, counts as a pod's: what it hides may be kubepods.
 */
export function isPodCgroup(cgroup: string): boolean {
  if (cgroup === "" || cgroup === "/.." || cgroup.startsWith("/../")) {
    return true;
  }
  return cgroup.split("/").some((component) => component.startsWith("kubepods"));
}

/**
 * The role from what the kernel says: processes in a pod's cgroup are pods, unless it is the agent's own container's;
 * outside pods uid 0 and the agent's uid are operators.
 */
export function roleOf(peer: Pick<PeerProcess, "uid" | "cgroup">, agent: { uid: number; cgroup: string }): CallerRole {
  if (isPodCgroup(peer.cgroup) && peer.cgroup !== agent.cgroup) {
    return "pod";
  }
  return peer.uid === 0 || peer.uid === agent.uid ? "operator" : "other";
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
