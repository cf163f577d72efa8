// Who may call what, by real processes in cgroups as kubelet makes them.
import { randomUUID } from "node:crypto";
import { chmodSync } from "node:fs";
import { AgentService } from "@weightline/proto/local";
import t, { type Test } from "tap";
import { createCgroupTree } from "../../support/cgroup.ts";
import { type Agent, createCluster } from "../../support/cluster.ts";
import { ROOT, runCommand, startCommand } from "../../support/program.ts";
import { writeTensors } from "../../support/safetensors-file.ts";

const cluster = await createCluster();
const cgroups = createCgroupTree();
t.teardown(async () => {
  await cluster.stop();
  await cgroups.remove();
});
// For other users.
chmodSync(cluster.folder, 0o755);
await cluster.startControlPlane();
const agent = await cluster.startAgent("a");
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [5_000_000], data: Buffer.alloc(5_000_000, 7) } });
await cluster.load(agent, path, "m");

const POD = randomUUID();
const container = cgroups.container(POD, "main");
/** Goes on as another user, in Python. */
const AS_OTHER = "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n";
const OPERATORS_ONLY = ["load", "pull", "evict", "drain"];
const ALL = Object.values(AgentService.method).map(({ name }) => name);

const environment = { PYTHONPATH: `${ROOT}python/weightline:${ROOT}test/support`, PYTHONDONTWRITEBYTECODE: "1" };
const command = (on: Agent, code: string, wrapper: readonly string[] = []) => [
  ...wrapper,
  "python3",
  "-u",
  "-c",
  `import os, time, weightline\nfrom raw_client import *\npath = sys.argv[1]\n${code}`,
  on.socket,
];

/** Runs Python by a wrapper; gives what it printed. */
async function python(on: Agent, code: string, wrapper: readonly string[] = []): Promise<string> {
  const done = await runCommand(command(on, code, wrapper), { env: environment, timeoutMs: 60_000 });
  if (done.code !== 0) {
    throw new Error(`python: exit ${done.code}\n${done.stdout}\n${done.stderr}`);
  }
  return done.stdout.trim();
}

/** Calls every method but drain with a message that says little; what comes back is its code. */
const EVERY_CALL = `
def codes(headers=()):
    found = {}
    for name in ${JSON.stringify(ALL.filter((name) => name !== "Drain"))}:
        status, body = ask(path, name, {}, headers=headers)
        found[name] = body.get("code") or body.get("error", {}).get("code", "") or "ok"
    return found
`;

async function codes(
  on: Agent,
  wrapper: readonly string[],
  { headers = [], first = "" }: { headers?: readonly string[]; first?: string } = {},
) {
  const code = `${first}${EVERY_CALL}\nsay(json.dumps(codes(${JSON.stringify(headers)})))`;
  const output = await python(on, code, wrapper);
  return JSON.parse(output) as Record<string, string>;
}

/** Every call is either for all, or for operators only. */
function checkCodes(t: Test, found: Record<string, string>, operator: boolean): void {
  for (const [name, code] of Object.entries(found)) {
    const denied = !operator && OPERATORS_ONLY.includes(name.toLowerCase());
    t.equal(code === "permission_denied", denied, `${name}: ${code}`);
  }
}

const DRAIN = 'say(ask(path, "Drain", {})[1].get("code", "drained"))';

t.test("a process in a pod: acquire, attach, release, status, transfers; never load, pull, evict, drain", async (t) => {
  const wrapper = cgroups.wrapper(container);
  for (const first of ["", AS_OTHER]) {
    checkCodes(t, await codes(agent, wrapper, { first }), false);
    t.equal(await python(agent, first + DRAIN, wrapper), "permission_denied");
  }
  const used = await python(
    agent,
    `
held = weightline.connect(path).acquire(model_name="m")
say(open("/proc/self/cgroup").read().split("0::")[1].strip(), held["w"].data[4_999_999])
status, answer = ask(path, "Attach", {"leaseId": held.lease_id})
say(status, answer["held"]["outcome"], ask(path, "Status", {})[1]["leases"], ask(path, "Transfers", {})[0])
say(ask(path, "Release", {"leaseId": held.lease_id})[1], ask(path, "Status", {})[1].get("leases", 0))
`,
    wrapper,
  );
  t.equal(used, `${container} 7\n200 held 1 200\n{'released': True} 0`, "its cgroup is a pod's, and it is served");
});

t.test("S8: a pod makes the agent open no path, evict nothing", async (t) => {
  const output = await python(
    agent,
    `
error = ask(path, "Load", {"path": "${path}", "modelName": "forged"})[1]["error"]
say(error["code"], "|", error["message"])
error = ask(path, "Load", {"path": "/no/such/path", "modelName": "forged"})[1]["error"]
say(error["code"])
say(ask(path, "Evict", {"wanted": {"model": {"modelName": "m"}}, "force": True})[1]["code"])
say(ask(path, "Pull", {"wanted": {"model": {"modelName": "m"}}})[1]["error"]["code"])
`,
    cgroups.wrapper(container),
  );
  t.equal(
    output,
    "permission_denied | a process in a pod may not call load\npermission_denied\npermission_denied\npermission_denied",
    "and it learns nothing of what is there",
  );
  const { holdings } = await agent.client.status({});
  t.same(
    holdings.map(({ identities }) => identities[0]?.identity?.modelName),
    ["m"],
  );
});

t.test("S1: what a request says of its sender changes nothing", async (t) => {
  const forged = [
    "X-Weightline-Role: operator",
    "X-Forwarded-For: 127.0.0.1",
    "X-Remote-User: root",
    `X-Remote-Pid: ${agent.program.pid}`,
    "Authorization: Bearer operator",
    "Forwarded: for=unix;uid=0",
  ];
  checkCodes(t, await codes(agent, cgroups.wrapper(container), { headers: forged }), false);
  const lease = startCommand(
    command(
      agent,
      'held = weightline.connect(path).acquire(model_name="m")\nsay("lease", held.lease_id)\ntime.sleep(60)',
    ),
    { env: environment },
  );
  const [, id = ""] = await lease.waitFor(/lease (\S+)/);
  const output = await python(
    agent,
    `
for name in ("Release", "Attach"):
    say(ask(path, name, {"leaseId": "${id}", "pid": ${lease.pid}, "owner": {"pid": ${lease.pid}}})[1]["code"])
    say(ask(path, name, {"leaseId": "${id}"}, headers=["X-Remote-Pid: ${lease.pid}"])[1]["code"])
`,
    cgroups.wrapper(container),
  );
  t.equal(output, "permission_denied\npermission_denied\nnot_found\nnot_found");
  t.equal((await agent.client.status({})).leases, 1);
  await lease.stop();
});

t.test("outside pods: uid 0 may all, another uid what pods may", async (t) => {
  checkCodes(t, await codes(agent, []), true);
  checkCodes(t, await codes(agent, [], { first: AS_OTHER }), false);
  t.equal(await python(agent, AS_OTHER + DRAIN), "permission_denied");
  const plain = cgroups.make("system.slice/ssh.service");
  checkCodes(t, await codes(agent, cgroups.wrapper(plain)), true);
});

t.test("every way that pods' cgroups look", async (t) => {
  for (const name of [
    `kubepods/besteffort/pod${POD}/abc`,
    `kubepods.slice/kubepods-pod${POD.replaceAll("-", "_")}.slice/crio-abc.scope/container`,
    `kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod${POD.replaceAll("-", "_")}.slice/x`,
    `kubepods.slice/kubepods-besteffort.slice/odd.scope`,
  ]) {
    checkCodes(t, await codes(agent, cgroups.wrapper(cgroups.make(name))), false);
  }
});

const MOVE = (cgroup: string) => `open("${cgroups.processes(cgroup)}", "w").write("0")`;
const ON = `
def on(sock, answers, name):
    sock.sendall(request(name, {"wanted": {"model": {"modelName": "none"}}}))
    return answers.next()[1].get("code", "ok")
`;

t.test("the role is that of the moment when it connected: moving changes new connections only", async (t) => {
  const output = await python(
    agent,
    `${ON}
s = connect(path); a = Answers(s)
say(on(s, a, "Evict"))
${MOVE(container)}
say(on(s, a, "Evict"))
say(ask(path, "Evict", {"wanted": {"model": {"modelName": "none"}}})[1]["code"])
`,
  );
  t.equal(output, "not_found\nnot_found\npermission_denied", "an operator's connection stays one");
  const outside = cgroups.make("outside");
  const inverse = await python(
    agent,
    `${ON}
s = connect(path); a = Answers(s)
say(on(s, a, "Evict"))
${MOVE(outside)}
say(on(s, a, "Evict"))
`,
    cgroups.wrapper(container),
  );
  t.equal(inverse, "permission_denied\npermission_denied", "a pod's stays a pod's");
});

t.test("a connection that is handed on stays its maker's: role, leases, and their end", async (t) => {
  const output = await python(
    agent,
    `${ON}
ours, theirs = socket.socketpair()
pid = os.fork()
if pid == 0:
    # A process in a pod, with a connection of a process outside.
    ${MOVE(container)}
    ours.close()
    s = socket.socket(fileno=socket.recv_fds(theirs, 1, 1)[1][0]); s.settimeout(20)
    a = Answers(s)
    say("handed:", on(s, a, "Evict"))
    say("own:", ask(path, "Evict", {"wanted": {"model": {"modelName": "none"}}})[1]["code"])
    s.sendall(request("Acquire", model("m")))
    lease = a.next()[1]["held"]["leaseId"]
    say("own release:", ask(path, "Release", {"leaseId": lease})[1]["code"])
    theirs.send(lease.encode())
    theirs.recv(1)
    os._exit(0)
theirs.close()
s = connect(path)
socket.send_fds(ours, [b"x"], [s.fileno()])
s.close()
lease = ours.recv(100).decode()
say("maker's release:", ask(path, "Release", {"leaseId": lease})[1])
ours.send(b"x")
os.waitpid(pid, 0)
`,
  );
  t.equal(
    output,
    "handed: not_found\nown: permission_denied\nown release: permission_denied\nmaker's release: {'released': True}",
  );
  // The maker is gone, its connection is not: what it acquires ends at once.
  const orphan = startCommand(
    command(
      agent,
      `${ON}
s = connect(path); a = Answers(s)
say(on(s, a, "Status"))
if os.fork() > 0: os._exit(0)
time.sleep(0.5)
s.sendall(request("Acquire", model("m")))
say("got", "held" in a.next()[1])
time.sleep(60)
`,
    ),
    { env: environment },
  );
  await orphan.waitFor(/got True/);
  for (let i = 0; i < 100 && (await agent.client.status({})).leases > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  t.equal((await agent.client.status({})).leases, 0);
  const [child] = (await runCommand(["pgrep", "-f", `raw_client.*${agent.socket}`])).stdout.trim().split("\n");
  t.ok(child, "its child is still there, with the connection");
  process.kill(Number(child), "SIGKILL");
});

t.test(
  "an agent that is itself a pod: its own container is for operators, everything else of pods is not",
  async (t) => {
    const own = cgroups.container(randomUUID(), "agent");
    const inside = await cluster.startAgent("inside", [], { wrapper: cgroups.wrapper(own) });
    checkCodes(t, await codes(inside, cgroups.wrapper(own)), true);
    checkCodes(t, await codes(inside, cgroups.wrapper(own), { first: AS_OTHER }), false);
    const sidecar = cgroups.make(
      own.slice(cgroups.top.length + 1).replace("cri-containerd-agent", "cri-containerd-side"),
    );
    checkCodes(t, await codes(inside, cgroups.wrapper(sidecar)), false);
    checkCodes(t, await codes(inside, cgroups.wrapper(container)), false);
    checkCodes(t, await codes(inside, []), true);
    t.equal(await python(inside, DRAIN, cgroups.wrapper(container)), "permission_denied");
    t.equal(await python(inside, DRAIN, cgroups.wrapper(own)), "drained", "preStop");
    await inside.program.stop();
  },
);

t.test("caps are per pod: containers and processes of one share them, another pod has its own", async (t) => {
  const second = cgroups.container(POD, "second");
  const other = cgroups.container(randomUUID(), "main");
  // Two containers take 8 connections each, which all have a call: 16 together.
  const crowd = [container, second].map((cgroup) =>
    startCommand(
      command(
        agent,
        `
all = []
for i in range(8):
    s = connect(path); s.sendall(request("Status", {}, text="{}".ljust(100))[:-1]); all.append(s)
say("busy")
end = time.monotonic() + 60
while time.monotonic() < end: time.sleep(0.5)
`,
        cgroups.wrapper(cgroup),
      ),
      { env: environment },
    ),
  );
  await Promise.all(crowd.map((program) => program.waitFor(/busy/)));
  const CODE = 'say(ask(path, "Status", {})[1].get("code", "ok"))';
  t.equal(await python(agent, CODE, cgroups.wrapper(second)), "resource_exhausted");
  t.equal(await python(agent, CODE, cgroups.wrapper(container)), "resource_exhausted");
  t.equal(await python(agent, CODE, cgroups.wrapper(other)), "ok");
  t.equal(await python(agent, CODE), "ok");
  t.match(agent.program.output(), new RegExp(`"caller":"pod ${POD}"`), "named in the log");
  await Promise.all(crowd.map((program) => program.stop()));
  t.equal(await python(agent, CODE, cgroups.wrapper(container)), "ok");
});

t.test("a number that was given to another process: neither its leases nor its role", async (t) => {
  // In a pid namespace of its own, where the next number can be chosen.
  const apart = await cluster.startAgent("apart", [], {
    wrapper: ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM"],
  });
  t.match(await python(apart, 'say(json.dumps(ask(path, "Status", {})))'), /"failed_precondition".*hostPID/);
  const enter = ["nsenter", `--pid=/proc/${apart.program.pid}/ns/pid_for_children`];
  const output = await python(
    apart,
    `
def run(pid, body):
    r, w = os.pipe()
    open("/proc/sys/kernel/ns_last_pid", "w").write(str(pid - 1))
    child = os.fork()
    if child == 0:
        os.close(r)
        os.write(w, body().encode())
        os.close(w)
        signal.pause()
    os.close(w)
    return child, os.read(r, 1000).decode()
import signal
NUMBER = 31000
assert "loaded" in ask(path, "Load", {"path": "${path}", "modelName": "m"})[1]
def first():
    return ask(path, "Acquire", model("m"))[1]["held"]["leaseId"]
pid, lease = run(NUMBER, first)
leases = lambda: ask(path, "Status", {})[1].get("leases", 0)
say(pid == NUMBER, leases())
def second():
    ${MOVE(container)}
    codes = [ask(path, name, {"leaseId": lease})[1] for name in ("Attach", "Release")]
    evict = ask(path, "Evict", {"wanted": {"model": {"modelName": "m"}}})[1]["code"]
    return " ".join([codes[0]["code"], codes[1].get("code", str(codes[1].get("released", False))), evict])
os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
pid, said = run(NUMBER, second)
say(pid == NUMBER, said)
os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
for i in range(100):
    if leases() == 0: break
    time.sleep(0.02)
say(leases())
`,
    enter,
  );
  const [first, second, third] = output.split("\n");
  t.equal(first, "True 1");
  t.match(second, /^True not_found (False|permission_denied) permission_denied$/);
  t.equal(third, "0");
  await apart.program.stop();
});
