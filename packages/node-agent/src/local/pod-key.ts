/** True for the folder below which kubelet keeps its pods: kubepods, kubepods.slice, or with the name of a cgroup root before it. */
function isPodsFolder(component: string): boolean {
  return component.startsWith("kubepods") || /-kubepods(-[^/]*)?(\.slice)?$/.test(component);
}

/** The uid of the pod whose folder this is; undefined for any other folder. systemd's names have `_` for `-`. */
function podUidOf(component: string): string | undefined {
  const [, uid] = /^(?:.*-)?pod([0-9A-Za-z_]+)\.slice$/.exec(component) ?? /^pod([0-9A-Za-z-]+)$/.exec(component) ?? [];
  return uid?.replaceAll("_", "-");
}

/** True for a path that begins outside this process's cgroup namespace, or is not known. */
function isHidden(cgroup: string): boolean {
  return cgroup === "" || cgroup === "/.." || cgroup.startsWith("/../");
}

/** True for a pod's cgroup. What cannot be seen counts as a pod's: it may be below kubepods. */
export function isPodCgroup(cgroup: string): boolean {
  return isHidden(cgroup) || cgroup.split("/").some(isPodsFolder);
}

/**
 * What the processes of one pod have in common, from the path of a cgroup for which {@link isPodCgroup} holds: both cgroup
 * drivers give the same key. The outermost pod counts, since it can make what it likes below itself; but not one that the
 * agent is in as well: on a node that is itself a pod, all others are inside that. A path without a pod's folder is a pod by
 * its first named folder below kubepods, or below what is hidden.
 */
export function podKey(cgroup: string, agentCgroup: string): string {
  const components = cgroup.split("/").filter((component) => component !== "");
  const agent = agentCgroup.split("/").filter((component) => component !== "");
  const hidden = isHidden(cgroup);
  const start = hidden ? components.lastIndexOf("..") + 1 : components.findIndex(isPodsFolder);
  let shared = 0;
  while (!hidden && shared < components.length && components[shared] === agent[shared]) {
    shared += 1;
  }
  const uids = components.map((component, i) => (i < start ? undefined : podUidOf(component)));
  const uid = uids.find((one, i) => one !== undefined && i >= shared) ?? uids.findLast((one) => one !== undefined);
  if (uid !== undefined) {
    return `pod ${uid}`;
  }
  const last = hidden ? start : components.findLastIndex(isPodsFolder) + 1;
  return `pod /${components.slice(0, last + 1).join("/")}`;
}
