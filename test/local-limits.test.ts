// The caps of the local API, each at, below and above; what is slow is a model whose sender is stopped.
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import * as limits from "../packages/node-agent/src/local/limits.ts";
import { type Agent, createCluster } from "./support/cluster.ts";
import { ROOT, runCommand, startCommand } from "./support/program.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
await cluster.startControlPlane();
const origin = await cluster.startAgent("origin");
const agent = await cluster.startAgent("a", ["--stall-timeout", "120s"]);
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [5_000_000] } });
await cluster.load(origin, path, "slow");
await cluster.load(agent, path, "m");
const mover = Number((await runCommand(["pgrep", "-P", String(origin.program.pid), "-f", "mover-main"])).stdout);
process.kill(mover, "SIGSTOP");
t.teardown(async () => {
  process.kill(mover, "SIGCONT");
  await cluster.stop();
});

const environment = { PYTHONPATH: `${ROOT}test/support`, PYTHONDONTWRITEBYTECODE: "1" };
const program = (code: string, on: Agent) => [
  "python3",
  "-u",
  "-c",
  `import os, time\nfrom raw_client import *\npath = sys.argv[1]\n${code}`,
  on.socket,
];

/** Runs Python with `raw_client`; gives what it printed. */
async function python(code: string, on: Agent = agent): Promise<string> {
  const done = await runCommand(program(code, on), { env: environment, timeoutMs: 100_000 });
  if (done.code !== 0) {
    throw new Error(`python: exit ${done.code}\n${done.stdout}\n${done.stderr}`);
  }
  return done.stdout.trim();
}

const start = (code: string) => startCommand(program(code, agent), { env: environment });

/** Words that each refusal has. */
const words = (field: string, limit: number) =>
  new RegExp(`"code": "resource_exhausted".*"field": "${field}".*"limit": "${limit}".*"wayOut": "[^"]+`, "s");

const WAITING = 'slow = request("Acquire", model("slow"))\n';

t.test("connections: all may be busy up to the cap; a silent one makes room; else words", async (t) => {
  const output = await python(`${WAITING}
busy = []
for i in range(${limits.POD_CONNECTIONS_MAX - 1}):
    s = connect(path); s.sendall(slow); busy.append(s)
silent = connect(path)
# Each is busy once its first progress has come.
for s in busy: assert s.recv(1) == b"H"
def still(): return sum(1 for s in busy if not is_closed(s))
def is_closed(s):
    s.setblocking(False)
    try: return s.recv(65536, socket.MSG_PEEK) == b""
    except BlockingIOError: return False
    finally: s.setblocking(True)
last = connect(path)
last.sendall(slow)
assert last.recv(1) == b"H"
busy.append(last)
say("silent one closed:", silent.recv(1) == b"", "busy:", still())
say(json.dumps(ask(path, "Status", {})))
say("busy:", still())
busy.pop().close()
for i in range(100):
    status, _ = ask(path, "Status", {})
    if status == 200: break
    time.sleep(0.02)
say("after one left:", status)
`);
  const [closed, refused = "", after, again] = output.split("\n");
  t.equal(closed, `silent one closed: True busy: ${limits.POD_CONNECTIONS_MAX}`);
  t.match(refused, /^\[429/);
  t.match(refused, words("connections", limits.POD_CONNECTIONS_MAX));
  t.equal(after, `busy: ${limits.POD_CONNECTIONS_MAX}`, "none of the busy ones was closed for it");
  t.equal(again, "after one left: 200");
  t.ok((await agent.metric("weightline_local_refusals_total", 'limit="connections"')) >= 1);
});

t.test("silent connections: the oldest goes at the cap", async (t) => {
  const output = await python(`
all = [connect(path) for i in range(${limits.POD_CONNECTIONS_MAX})]
extra = connect(path)
extra.sendall(request("Status", {}))
say(Answers(extra).next()[0], all[0].recv(1) == b"")
all[1].sendall(request("Status", {}))
say(Answers(all[1]).next()[0])
`);
  t.equal(output, "200 True\n200");
});

t.test(
  "calls in flight: pipelined up to the cap, refused above in the call's own form, free when they end",
  async (t) => {
    const output = await python(`${WAITING}
a = connect(path)
a.sendall(slow * ${limits.POD_CALLS_MAX - 1})
assert a.recv(1) == b"H"
time.sleep(0.5)
say(*[ask(path, "Status", {})[0] for i in range(3)])
b = connect(path)
b.sendall(slow)
assert b.recv(1) == b"H"
say(json.dumps(ask(path, "Status", {})))
say(json.dumps(ask(path, "Acquire", model("m"))))
a.close()
for i in range(200):
    status, _ = ask(path, "Status", {})
    if status == 200: break
    time.sleep(0.02)
# What was behind the first answer ended with its connection.
c = connect(path)
c.sendall(slow * ${limits.POD_CALLS_MAX - 2})
assert c.recv(1) == b"H"
time.sleep(0.5)
say("after they left:", status, ask(path, "Status", {})[0])
`);
    const [below, unary = "", stream = "", after] = output.split("\n");
    t.equal(below, "200 200 200", "the last one below the cap");
    t.match(unary, /^\[429/);
    t.match(unary, words("calls", limits.POD_CALLS_MAX));
    t.match(stream, /^\[200, \{"error"/, "a stream ends with it");
    t.match(stream, words("calls", limits.POD_CALLS_MAX));
    t.equal(after, "after they left: 200 200");
    t.ok((await agent.metric("weightline_local_refusals_total", 'limit="calls"')) >= 2);
  },
);

t.test("another process is not in that group", async (t) => {
  const crowd = start(`${WAITING}
a = connect(path)
a.sendall(slow * ${limits.POD_CALLS_MAX + 5})
assert a.recv(1) == b"H"
for i in range(100):
    status = ask(path, "Status", {})[0]
    if status == 429: break
    time.sleep(0.02)
say("full", status)
time.sleep(60)
`);
  await crowd.waitFor(/full 429/);
  t.equal(await python('say(ask(path, "Acquire", model("m"))[0], ask(path, "Status", {})[0])'), "200 200");
  await crowd.stop();
});

t.test("one message: at the limit it is taken, above it is refused in words, unary and stream", async (t) => {
  const output = await python(`
limit = ${limits.MESSAGE_MAX_BYTES}
for size in (limit - 1, limit, limit + 1):
    say(json.dumps(ask(path, "Status", None, text="{}".ljust(size))))
for size in (limit, limit + 1):
    say(json.dumps(ask(path, "Acquire", None, text=json.dumps(model("m")).ljust(size))))
`);
  const [below = "", at = "", above = "", streamAt = "", streamAbove = ""] = output.split("\n");
  t.match(below, /^\[200/);
  t.match(at, /^\[200/);
  t.match(above, /^\[429/);
  t.match(above, words("message", limits.MESSAGE_MAX_BYTES));
  t.match(streamAt, /"held"/);
  t.match(streamAbove, words("message", limits.MESSAGE_MAX_BYTES));
});

t.test("one identity", async (t) => {
  const output = await python(`
def ask_size(n):
    wanted = {"identity": {"modelName": "none", "extraParameters": {"k": "x" * n}}}
    return ask(path, "Acquire", {"wanted": wanted, "timeoutS": 5})[1]["error"]
# The fields around the text take 18 bytes.
limit = ${limits.IDENTITY_MAX_BYTES}
sizes = []
for n in range(limit - 40, limit + 1):
    error = ask_size(n)
    if error["code"] == "invalid_argument":
        say("first refused", n, json.dumps(error))
        break
`);
  t.match(output, new RegExp(`"field": "identity", "value": "${limits.IDENTITY_MAX_BYTES + 1} bytes"`));
});

t.test("tickets that nobody uses: refused at the cap, others go on, used ones count no more", async (t) => {
  const output = await python(`
lease = ask(path, "Acquire", model("m"))[1]["held"]["leaseId"]
s = connect(path)
answers = Answers(s)
def attach():
    s.sendall(request("Attach", {"leaseId": lease}))
    return answers.next()
got = [attach()[0] for i in range(${limits.POD_TICKETS_MAX - 1})]
say(set(got))
say(json.dumps(attach()))
say(ask(path, "Release", {"leaseId": lease})[1])
`);
  const [got, above = "", released] = output.split("\n");
  t.equal(got, "{200}");
  t.match(above, words("tickets", limits.POD_TICKETS_MAX));
  t.equal(released, "{'released': True}");
  const many = 'for i in range(600):\n    agent.acquire(model_name="m").release()\nprint("done")';
  t.equal(await agent.python(many), "done", "each is used, and counts no more");
});

/** Asks until the answers that nobody reads fill what the kernel holds, and one more waits in the agent. */
const FILL = `
import array, fcntl, termios
def held(s):
    count = array.array("i", [0])
    fcntl.ioctl(s, termios.FIONREAD, count)
    return count[0]
def fill(s):
    sent = 0
    while True:
        before = held(s)
        s.sendall(request("Status", {}))
        sent += 1
        end = time.monotonic() + 2
        while held(s) == before:
            if time.monotonic() > end: return sent
            time.sleep(0.001)
`;

t.test("answers that are not read: the connection is closed, nothing piles up", async (t) => {
  const before = await agent.metric("weightline_resident_memory_bytes");
  const output = await python(`${FILL}
s = connect(path)
sent = fill(s)
full = held(s)
s.settimeout(60)
poller = __import__("select").poll()
poller.register(s, 0)
say("closed", bool(poller.poll(60000)), sent > 50, full > 50000)
`);
  t.equal(output, "closed True True True");
  t.ok((await agent.metric("weightline_local_refusals_total", 'limit="unread"')) >= 1);
  const after = await agent.metric("weightline_resident_memory_bytes");
  t.ok(after - before < 64 * 2 ** 20, `${(after - before) / 2 ** 20} MiB more`);
});

t.test("a slow reader that reads is not closed", async (t) => {
  const output = await python(`${FILL}
s = connect(path)
answers = Answers(s)
left = fill(s)
end = time.monotonic() + ${(limits.DRAIN_TIMEOUT_MS + 3 * limits.SWEEP_INTERVAL_MS) / 1000}
while time.monotonic() < end:
    assert answers.next()[0] == 200
    s.sendall(request("Status", {}))
    # Fast enough for three quarters of what the kernel holds, in what the filling left of the time.
    time.sleep(0.01)
for i in range(left):
    assert answers.next()[0] == 200
say("all")
`);
  t.equal(output, "all");
});

t.test("a caller that goes on above its cap is closed", async (t) => {
  const output = await python(`${WAITING}
a = connect(path)
a.sendall(slow * ${limits.POD_CALLS_MAX})
assert a.recv(1) == b"H"
b = connect(path)
answers = Answers(b)
got = []
while True:
    try:
        b.sendall(request("Status", {}))
        status = answers.next()[0]
    except OSError: break
    if status is None: break
    got.append(status)
say(len(got), set(got))
`);
  const [count, statuses] = output.split(" ");
  // The last refusal may be lost with the connection.
  t.ok([limits.REFUSALS_MAX, limits.REFUSALS_MAX - 1].includes(Number(count)), output);
  t.equal(statuses, "{429}");
});

t.test("slow headers, and a body that stops: closed in time", async (t) => {
  const output = await python(`
begun = time.monotonic()
slow, cut = connect(path), connect(path)
slow.sendall(b"POST /x HTTP/1.1\\r\\n")
cut.sendall(request("Status", {}, text="{}".ljust(1000))[:-500])
alive = True
while alive and time.monotonic() - begun < 40:
    try: slow.sendall(b"a: b\\r\\n")
    except OSError: alive = False
    time.sleep(0.2)
say("slow closed:", not alive)
say("cut:", cut.recv(12))
`);
  t.equal(output, "slow closed: True\ncut: b'HTTP/1.1 408'");
});

t.test("requests that no handler can read: answered, and not a line in the log", async (t) => {
  const before = agent.program.output().length;
  const output = await python(`
def raw(data):
    s = connect(path)
    s.sendall(data)
    return s.recv(12)
first = SERVICE + "Status"
say(raw(("POST %s HTTP/1.0\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}" % first).encode()))
say(raw(("POST %s HTTP/1.1\\r\\nHost: [::\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}" % first).encode()))
for i in range(100):
    raw(("POST %s HTTP/1.0\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}" % first).encode())
    s = connect(path); s.sendall(request("Acquire", model("m"))); s.close()
say(ask(path, "Status", {})[0])
`);
  t.equal(output, "b'HTTP/1.1 400'\nb'HTTP/1.1 400'\n200");
  await sleep(200);
  const more = agent.program.output().slice(before);
  t.ok(more.length < 5000, more.slice(0, 2000));
  for (let i = 0; i < 100 && (await agent.client.status({})).leases > 0; i++) {
    await sleep(50);
  }
  t.equal((await agent.client.status({})).leases, 0, "leases of answers that nobody took are gone with their process");
});
