// Who a caller is, by the path of its cgroup.
import t from "tap";
import { groupKeyOf, roleOf } from "../src/local/caller.ts";
import { isPodCgroup, podKey } from "../src/local/pod-key.ts";

const UID = "0d1c5a3e-9b1f-4a57-8c1e-0123456789ab";
const OTHER = "ffffffff-9b1f-4a57-8c1e-0123456789ab";
const escaped = UID.replaceAll("-", "_");
const CONTAINER = "3f".repeat(32);

t.test("a pod's key: both cgroup drivers, all classes, nested roots", async (t) => {
  for (const cgroup of [
    // systemd: burstable, best effort, guaranteed; containerd, CRI-O, docker; with folders that the container made.
    `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${escaped}.slice/cri-containerd-${CONTAINER}.scope`,
    `/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod${escaped}.slice/crio-${CONTAINER}.scope`,
    `/kubepods.slice/kubepods-pod${escaped}.slice/docker-${CONTAINER}.scope`,
    `/kubepods.slice/kubepods-pod${escaped}.slice`,
    `/kubepods.slice/kubepods-pod${escaped}.slice/crio-${CONTAINER}.scope/container/init.scope`,
    // cgroupfs.
    `/kubepods/burstable/pod${UID}/${CONTAINER}`,
    `/kubepods/besteffort/pod${UID}/${CONTAINER}`,
    `/kubepods/pod${UID}/${CONTAINER}/system.slice/x.service`,
    // containerd's colon form of a systemd path on cgroupfs.
    `/system.slice/containerd.service/kubepods-burstable-pod${escaped}.slice:cri-containerd:${CONTAINER}`.replace(
      ":",
      "/",
    ),
    // k3s, kind (with kubelet's own cgroup root), a node in docker, rootless.
    `/k3s/kubepods/burstable/pod${UID}/${CONTAINER}`,
    `/kubelet/kubepods/burstable/pod${UID}/${CONTAINER}`,
    `/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod${escaped}.slice/cri-containerd-${CONTAINER}.scope`,
    `/docker/${CONTAINER}/kubelet/kubepods/pod${UID}/${CONTAINER}`,
    `/system.slice/docker-${CONTAINER}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod${escaped}.slice/x`,
    `/user.slice/user-1000.slice/user@1000.service/k3s_evac/kubepods/pod${UID}/${CONTAINER}`,
    // Only the end of it can be seen.
    `/../../pod${UID}/${CONTAINER}`,
    `/../kubepods-burstable-pod${escaped}.slice/cri-containerd-${CONTAINER}.scope`,
  ]) {
    t.ok(isPodCgroup(cgroup), cgroup);
    t.equal(podKey(cgroup, "/system.slice/weightline.service"), `pod ${UID}`, cgroup);
  }
  const hash = "0123456789abcdef0123456789abcdef";
  t.equal(podKey(`/kubepods/burstable/pod${hash}/${CONTAINER}`, "/"), `pod ${hash}`, "a static pod's uid is a hash");
});

t.test("what a pod makes below itself is still its own; a node that is a pod has others inside", async (t) => {
  const outer = `/kubepods/burstable/pod${UID}/${CONTAINER}`;
  const inner = `${outer}/kubelet/kubepods/pod${OTHER}/${CONTAINER}`;
  t.equal(
    podKey(inner, "/system.slice/weightline.service"),
    `pod ${UID}`,
    "forged inner pods do not multiply its caps",
  );
  t.equal(
    podKey(inner, `/kubepods/burstable/pod${OTHER}/${CONTAINER}`),
    `pod ${UID}`,
    "nor for an agent that is a pod",
  );
  const agentInside = `${outer}/kubelet/kubepods/pod11111111-0000-0000-0000-000000000000/a`;
  t.equal(podKey(inner, agentInside), `pod ${OTHER}`, "the agent is inside as well: the inner pods differ");
  t.equal(podKey(`${outer}x`, outer), `pod ${UID}`, "another container of the agent's own pod");
});

t.test("pods whose folder has no uid to be seen", async (t) => {
  t.equal(podKey("/kubepods.slice/odd.scope/deeper", "/"), "pod /kubepods.slice/odd.scope");
  t.equal(podKey("/kubepods", "/"), "pod /kubepods");
  t.equal(podKey("/../sibling/deeper", "/"), "pod /../sibling");
  t.equal(podKey("/..", "/"), "pod /..");
  t.equal(podKey("", "/"), "pod /");
});

t.test("no pod's", async (t) => {
  for (const cgroup of [
    "/",
    "/init.scope",
    "/user.slice/user-0.slice/session-1.scope",
    "/system.slice/kubelet.service",
    "/system.slice/not-kubepods.service",
    `/docker/${CONTAINER}`,
    `/machine.slice/libpod-${CONTAINER}.scope`,
    `/podruntime.slice/pod${UID}`,
  ]) {
    t.notOk(isPodCgroup(cgroup), cgroup);
  }
});

t.test("the role, and whose caps count", async (t) => {
  const pod = `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${escaped}.slice/cri-containerd-9.scope`;
  const daemonSet = { uid: 1000, cgroup: "/kubepods.slice/kubepods-pod1.slice/agent" };
  const service = { uid: 1000, cgroup: "/system.slice/weightline.service" };
  for (const [what, uid, cgroup, agent, role] of [
    ["root in a pod is a pod", 0, pod, service, "pod"],
    ["so is the agent's uid in a pod", 1000, pod, daemonSet, "pod"],
    ["kubectl exec into the agent's own container", 0, daemonSet.cgroup, daemonSet, "operator"],
    ["another uid there", 7, daemonSet.cgroup, daemonSet, "other"],
    ["another container of the agent's pod", 0, "/kubepods.slice/kubepods-pod1.slice/sidecar", daemonSet, "pod"],
    ["a folder made below the agent's container", 0, `${daemonSet.cgroup}/below`, daemonSet, "pod"],
    ["root outside", 0, "/user.slice", service, "operator"],
    ["the agent's uid outside", 1000, "/user.slice", service, "operator"],
    ["any other uid outside", 1001, "/user.slice", service, "other"],
    ["no cgroup known", 0, "", service, "pod"],
    ["outside the agent's namespace", 0, "/..", daemonSet, "pod"],
    ["outside the agent's namespace, with a name", 0, "/../podB/c", daemonSet, "pod"],
    ["kind's pods", 0, "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod2.slice/x", service, "pod"],
  ] as const) {
    t.equal(roleOf({ uid, cgroup }, agent), role, what);
    t.equal(
      groupKeyOf({ pid: 4711, cgroup }, role, agent),
      role === "pod" ? podKey(cgroup, agent.cgroup) : "process 4711",
    );
  }
});
