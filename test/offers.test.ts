import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { type Agent, createCluster } from "./support/cluster.ts";
import { runningMoverOf } from "./support/processes.ts";
import { pythonEnvironment, type RunningProgram, startCommand } from "./support/program.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
await cluster.startControlPlane();
const a = await cluster.startAgent("a");
const b = await cluster.startAgent("b");

const PRELUDE = `
import ctypes, fcntl, hashlib, json, math, mmap, os, socket, struct, sys, time, weightline
agent = weightline.connect()
def ident(name): return {"model_name": name, "extra_parameters": {"weightline.kind": "tensors"}}
def pattern(name, n): return hashlib.shake_128(name.encode()).digest(n)
`;

const pods: RunningProgram[] = [];
t.teardown(() => Promise.all(pods.map((program) => program.stop())));

/** A pod's process that goes on beside the test. */
function pod(agent: Agent, code: string): RunningProgram {
  const program = startCommand(["python3", "-u", "-c", `${PRELUDE}${code}`], {
    env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }),
  });
  pods.push(program);
  return program;
}

const python = (agent: Agent, code: string) => agent.python(`${PRELUDE}${code}`);

async function until(what: () => boolean | Promise<boolean>): Promise<boolean> {
  for (let i = 0; i < 200; i++) {
    if (await what()) {
      return true;
    }
    await sleep(50);
  }
  return what();
}

const holdings = async (agent: Agent) => (await agent.client.status({})).holdings;
const folders = (agent: Agent) => readdirSync(`${agent.store}/holdings`);
/** True once nothing of an offer is left, in the agent's view and in the store. */
const nothingLeft = (agent: Agent, kept: number) =>
  until(async () => (await holdings(agent)).length === kept && folders(agent).length === kept);
const evict = async (agent: Agent, name: string) => {
  for (const holding of await holdings(agent)) {
    for (const { identity, sourceId } of holding.identities) {
      if (identity?.modelName === name) {
        await cluster.mxctl(["evict", "--source-id", sourceId, "--force"], agent);
      }
    }
  }
};

const PAIR = `
tensors = [("model.embed", "BF16", (64, 33)), ("model.head", "F8_E4M3", (7, 5)), ("zero", "F32", (0, 4)), ("x", "F64", ())]
data = {"model.embed": pattern("e", 64 * 33 * 2), "model.head": pattern("h", 35), "x": pattern("x", 8)}
`;

t.test("a pod's tensors become a holding: attached, read-only, and the same on another node", async (t) => {
  const output = await python(
    a,
    `${PAIR}
with agent.offer(identity=ident("first"), tensors=tensors, aliases={"tied": "model.embed", "a": "x"}) as filling:
    print(filling.missing)
    filling.write("x", data["x"])
    view = filling.buffer("model.embed")
    view[:] = data["model.embed"]
    filling.written("tied")
    filling.write("model.head", bytearray(data["model.head"]))
    held = filling.seal()
print(list(held.names), held.kind, held.outcome)
print([(held[n].dtype, held[n].shape, bytes(held[n].data) == data[n]) for n in sorted(data)])
print(bytes(held["tied"].data) == data["model.embed"], bytes(held["a"].data) == data["x"], held["zero"].nbytes, held.nbytes)
print(held.object_digest)
held.release()`,
  );
  const lines = output.split("\n");
  t.same(lines.slice(0, 4), [
    "['a', 'model.embed', 'model.head']",
    "['a', 'model.embed', 'model.head', 'tied', 'x', 'zero'] tensors offered",
    "[('BF16', (64, 33), True), ('F8_E4M3', (7, 5), True), ('F64', (), True)]",
    // a at 0 (8 bytes), model.embed at 256 (4224), model.head at 4608 (35): aliases take nothing.
    "True True 0 4643",
  ]);
  const other = await python(
    b,
    `${PAIR}
held = agent.acquire(identity=ident("first"))
print(held.outcome, held.object_digest, all(bytes(held[n].data) == data[n] for n in data), bytes(held["tied"].data) == data["model.embed"])`,
  );
  t.equal(other, `received ${lines[4]} True True`);
  t.equal((await holdings(a))[0]?.leases, 0);
  await evict(a, "first");
  await evict(b, "first");
});

t.test(
  "the same tensors in any order and by any way are the same object; a second copy becomes another name",
  async (t) => {
    const code = (name: string, order: string) => `${PAIR}
tensors = ${order}
with agent.offer(identity=ident("${name}"), tensors=tensors) as filling:
    for n in [t[0] for t in tensors if t[0] in data]: filling.write(n, data[n])
    print(filling.seal().object_digest)`;
    const one = await python(a, code("one", "tensors"));
    const two = await python(a, code("two", "tensors[::-1]"));
    t.equal(one, two);
    const all = await holdings(a);
    t.equal(all.length, 1);
    t.same(all[0]?.identities.map(({ identity }) => identity?.modelName).sort(), ["one", "two"]);
    await evict(a, "one");
    t.ok(await nothingLeft(a, 0));
  },
);

t.test(
  "several segments: one more than the object is the most that is taken; children relay while it is filled",
  async (t) => {
    // Two items above half a GiB do not share a segment.
    const big = 560 << 20;
    const giver = pod(
      a,
      `
big = ${big}
block = pattern("block", 1 << 20)
def memory():
    total = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "weightline-offer" in os.readlink("/proc/self/fd/" + fd): total += os.fstat(int(fd)).st_blocks * 512
        except OSError: pass
    for folder, _, names in os.walk(${JSON.stringify(a.store)}):
        for name in names:
            try: total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError: pass
    return total
peak = 0
def fill(filling, name):
    global peak
    view = filling.buffer(name)
    for at in range(0, big, 1 << 20): view[at:at + (1 << 20)] = block
    del view
    peak = max(peak, memory())
    filling.written(name)
    peak = max(peak, memory())
with agent.offer(identity=ident("big"), tensors=[("t0", "U8", (big,)), ("t1", "U8", (big,)), ("t2", "U8", (16,))]) as filling:
    fill(filling, "t0")
    print("first given", flush=True)
    sys.stdin.readline()
    fill(filling, "t1")
    filling.write("t2", bytes(16))
    held = filling.seal()
    print("sealed", held.object_digest, peak / held.nbytes, peak - held.nbytes - big)`,
    );
    await giver.waitFor(/first given/);
    const [filling] = await holdings(a);
    t.equal(filling?.verifiedBytes, BigInt(big), "one of two segments is verified");
    const taker = pod(
      b,
      `held = agent.acquire(identity=ident("big"), progress=lambda p: print("progress", p["verified_bytes"], flush=True))
print("got", held.outcome, held.object_digest, bytes(held["t1"].data[-8:]) == pattern("block", 1 << 20)[-8:])`,
    );
    await taker.waitFor(new RegExp(`progress ${big}\\b`), 60_000);
    t.match(
      (await cluster.mxctl(["nodes"])).stdout,
      /b +ready .*filling/,
      "the relay has the first segment before the second is filled",
    );
    giver.say("go\n");
    const [, digest, , more] = await giver.waitFor(/sealed (\w+) (\S+) (\S+)/, 60_000);
    // Beside the object and one segment: layout, digests, and the window that is allocated ahead.
    t.ok(Number(more) < 64 << 20, `${more} bytes more than the object and one segment`);
    await taker.waitFor(new RegExp(`got received ${digest} True`), 60_000);
    await evict(a, "big");
    await evict(b, "big");
  },
);

t.test("a pod that dies, withdraws, or stalls: nothing stays, and who waited is told or moves on", async (t) => {
  const begin = (name: string, more = "") => `
filling = agent.offer(identity=ident("${name}"), tensors=[("w0", "U8", (600 << 20,)), ("w1", "U8", (600 << 20,))]${more})
filling.write("w0", bytes(600 << 20))
print("begun", flush=True)
sys.stdin.readline()
`;
  const wait = (agent: Agent, name: string) =>
    pod(
      agent,
      `
try:
    agent.acquire(identity=ident("${name}"), progress=lambda p: print("waiting", p["state"], flush=True))
except weightline.Error as error:
    print("told", error.code, flush=True)`,
    );
  const died = pod(a, `${begin("dies")}`);
  await died.waitFor(/begun/);
  const waiter = wait(a, "dies");
  await waiter.waitFor(/waiting offered/);
  const relay = wait(b, "dies");
  await relay.waitFor(/waiting receiving/);
  died.kill("SIGKILL");
  await waiter.waitFor(/told NotFound/);
  t.ok(await nothingLeft(a, 0), "gone with its process");
  const left = pod(a, `${begin("leaves")}filling.withdraw()\nprint("over", agent.withdraw_offer(filling.offer_id))`);
  await left.waitFor(/begun/);
  left.say("go\n");
  await left.waitFor(/over False/);
  t.ok(await nothingLeft(a, 0));

  const stalled = pod(
    a,
    `filling = agent.offer(identity=ident("stalls"), tensors=[("w", "U8", (9,))], stall_timeout=1)
print("begun", flush=True)
sys.stdin.readline()
try: filling.write("w", bytes(9)); filling.seal()
except weightline.Error as error: print("late", error.code, error, flush=True)`,
  );
  await stalled.waitFor(/begun/);
  t.ok(await nothingLeft(a, 0), "gone although its process lives");
  stalled.say("go\n");
  await stalled.waitFor(/late \w+ .*/, 20_000);
  await stalled.waitFor(/begin (a|the) (new )?offer|begin the offer again/);

  const block = pod(
    a,
    `with agent.offer(identity=ident("block"), tensors=[("w", "U8", (9,))]) as f:\n    print("left", f.offer_id)`,
  );
  await block.waitFor(/left/);
  t.ok(await nothingLeft(a, 0), "a block without seal() withdraws");

  await relay.waitFor(/told (NotFound|Unavailable)/, 60_000);
  t.ok(await nothingLeft(b, 0), "the relay's half is gone too");
});

t.test("an offer that ends: who waits for it goes on with a holder elsewhere", async (t) => {
  await python(
    b,
    `with agent.offer(identity=ident("two"), tensors=[("w", "U8", (9,))]) as f:\n    f.write("w", b"elsewhere")\n    f.seal()`,
  );
  const giver = pod(
    a,
    `f = agent.offer(identity=ident("two"), tensors=[("w", "U8", (5,))])\nprint("begun", flush=True)\ntime.sleep(60)`,
  );
  await giver.waitFor(/begun/);
  const waiter = pod(
    a,
    `held = agent.acquire(identity=ident("two"), progress=lambda p: print("waiting", p["state"], flush=True))\nprint("got", held.outcome, bytes(held["w"].data))`,
  );
  await waiter.waitFor(/waiting offered/);
  giver.kill("SIGKILL");
  t.ok(await waiter.waitFor(/got received b'elsewhere'/));
  await evict(a, "two");
  await evict(b, "two");
});

t.test("a caller's own deadline, in its request's header, is a deadline", async (t) => {
  const output = await python(
    a,
    `
import json
from weightline import transport
filling = agent.offer(identity=ident("late"), tensors=[("w", "U8", (9,))])
body = json.dumps({"wanted": {"identity": {"modelName": "late", "extraParameters": {"weightline.kind": "tensors"}}}}).encode()
connection = transport._UnixConnection(agent.path, 20)
headers = {"Content-Type": "application/connect+json", "Connect-Timeout-Ms": "300"}
connection.request("POST", transport.SERVICE + "Acquire", struct.pack(">BI", 0, len(body)) + body, headers)
print(b'"code":"deadline_exceeded"' in connection.getresponse().read())
filling.withdraw()`,
  );
  t.equal(output, "True");
  t.ok(await nothingLeft(a, 0));
});

t.test("two pods, one identity: the second is told to wait and attaches, or goes on by itself", async (t) => {
  const first = pod(
    a,
    `f = agent.offer(identity=ident("same"), tensors=[("w", "U8", (3,))])
print("begun", flush=True)
sys.stdin.readline()
f.write("w", b"one")
h = f.seal()
print("sealed", flush=True)
sys.stdin.readline()`,
  );
  await first.waitFor(/begun/);
  const refusal = await python(
    a,
    `try: agent.offer(identity=ident("same"), tensors=[("w", "U8", (3,))])
except weightline.AlreadyExists as error: print(error.field, "|", error.way_out)`,
  );
  t.match(refusal, /^identity \| acquire it, which waits for it and attaches; or offer it with alone/);
  const waiter = pod(
    a,
    `h = agent.acquire(identity=ident("same"), progress=lambda p: print("waiting", flush=True))\nprint("attached", h.outcome, bytes(h["w"].data), flush=True)`,
  );
  await waiter.waitFor(/waiting/);
  const alone = await python(
    a,
    `with agent.offer(identity=ident("same"), tensors=[("w", "U8", (3,))], alone=True) as f:
    f.write("w", b"two")
    print(bytes(f.seal()["w"].data))`,
  );
  t.equal(alone, "b'two'");
  first.say("go\n");
  await first.waitFor(/sealed/);
  await waiter.waitFor(/attached waited b'one'/);
  t.equal((await holdings(a)).length, 2, "two objects under one name are kept apart");
  const held = await python(
    a,
    `try: agent.offer(identity=ident("same"), tensors=[("w", "U8", (3,))])
except weightline.AlreadyExists as error: print(error.message)`,
  );
  t.match(held, /holds same, rank 0 already/);
  first.say("end\n");
  await evict(a, "same");
  t.ok(await nothingLeft(a, 0));
});

/** Gives memory by hand: `give(what, segment, size, fds)` returns the agent's answer. */
const BY_HAND = `
import base64
from weightline import transport
def begin(tensors, **more):
    o = transport.call(agent.path, "Offer", {"identity": {"modelName": "byhand", "extraParameters": {"weightline.kind": "t"}}, "alone": True, **more})
    t = o["ticket"]
    return o["offerId"], base64.b64decode(t["id"]) + base64.b64decode(t["secret"])
def give(ticket, what, segment, size, fds, magic=b"WLGV", version=1):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(30)
    s.connect(agent.path + ".fd")
    body = magic + struct.pack("<I", version) + ticket + struct.pack("<IIQ", what, segment, size)
    if fds: socket.send_fds(s, [body], fds)
    else: s.send(body)
    data, got, _, _ = socket.recv_fds(s, 65536, 4)
    for fd in got: os.close(fd)
    s.close()
    return json.loads(data)
def memfd(data, flags=os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING):
    fd = os.memfd_create("t", flags)
    os.write(fd, data)
    return fd
LIST = json.dumps({"w": {"dtype": "U8", "shape": [8192]}, "v": {"dtype": "U8", "shape": [3]}}).encode()
SIZE = 256 + 8192
GOOD = b"abc" + bytes(253) + bytes(range(256)) * 32
def listed():
    offer, ticket = begin(None)
    fd = memfd(LIST)
    answer = give(ticket, 0, 0, len(LIST), [fd])
    os.close(fd)
    assert answer["ok"] and answer["total_bytes"] == SIZE, answer
    return offer, ticket
`;

t.test(
  "everything else than a memfd that nobody can change any more is refused with words, and ends the offer",
  async (t) => {
    const output = await python(
      a,
      `${BY_HAND}
libc = ctypes.CDLL(None, use_errno=True)
def pinned():
    "A buffer that io_uring holds: it could be written after the seal."
    fd = memfd(GOOD)
    m = mmap.mmap(fd, SIZE)
    params = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 4, params)
    assert ring >= 0, os.strerror(ctypes.get_errno())
    address = ctypes.addressof(ctypes.c_char.from_buffer(m))
    iovec = struct.pack("QQ", address, SIZE)
    assert libc.syscall(427, ring, 0, iovec, 1) == 0, os.strerror(ctypes.get_errno())
    # The mapping goes, the pin stays.
    libc.munmap(ctypes.c_void_p(address & ~4095), ctypes.c_size_t((SIZE + 4095) & ~4095))
    keep.append((ring, m))
    return [fd]
def mapped():
    fd = memfd(GOOD)
    keep.append(mmap.mmap(fd, SIZE))
    return [fd]
def sparse():
    fd = os.memfd_create("t", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"x", 0)
    return [fd]
def read_only():
    fd = memfd(GOOD)
    return [os.open("/proc/self/fd/%d" % fd, os.O_RDONLY)]
def path_only():
    fd = memfd(GOOD)
    return [os.open("/proc/self/fd/%d" % fd, os.O_PATH)]
def file_on(folder):
    path = folder + "/given"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, GOOD)
    os.unlink(path)
    return [fd]
def huge():
    fd = os.memfd_create("t", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    return [fd]
def sealed_early():
    fd = memfd(GOOD)
    fcntl.fcntl(fd, 1033, 1)
    return [fd]
keep = []
cases = {
    "unsealable": lambda: [memfd(GOOD, os.MFD_CLOEXEC)],
    "sealed early": sealed_early,
    "mapped for writing": mapped,
    "pinned": pinned,
    "sparse": sparse,
    "read-only": read_only,
    "path": path_only,
    "pipe": lambda: [os.pipe()[1]],
    "socket": lambda: [socket.socket().detach()],
    "device": lambda: [os.open("/dev/zero", os.O_RDWR)],
    "file on tmpfs": lambda: file_on("/dev/shm"),
    "file on disk": lambda: file_on(${JSON.stringify(cluster.folder)}),
    "huge pages": huge,
    "none": lambda: [],
    "two": lambda: [memfd(GOOD), memfd(GOOD)],
    "smaller": lambda: [memfd(GOOD[:-1])],
    "larger": lambda: [memfd(GOOD + b"x")],
    "not zero between tensors": lambda: [memfd(b"abc" + bytes(252) + b"!" + GOOD[256:])],
}
for name, make in cases.items():
    offer, ticket = listed()
    answer = give(ticket, 1, 0, SIZE, make())
    over = give(ticket, 1, 0, SIZE, [memfd(GOOD)])
    print(json.dumps([name, answer.get("code"), answer.get("message"), answer.get("way_out") != "", over["code"]]))
`,
    );
    const words: Record<string, RegExp> = {
      unsealable: /cannot be sealed/,
      "sealed early": /cannot be sealed/,
      "mapped for writing": /still mapped for writing or pinned/,
      pinned: /still mapped for writing or pinned/,
      sparse: /is sparse: 4096 of 8448 bytes/,
      "read-only": /not open for reading and writing/,
      path: /not open for reading and writing/,
      pipe: /not open for reading and writing/,
      socket: /is no memfd/,
      device: /is no memfd/,
      "file on tmpfs": /cannot be sealed/,
      "file on disk": /is no memfd/,
      "huge pages": /hugetlbfs/,
      none: /0 descriptors came, not one/,
      two: /2 descriptors came, not one/,
      smaller: /smaller than announced: 8447 bytes, not 8448/,
      larger: /larger than announced: 8449 bytes, not 8448/,
      "not zero between tensors": /byte 255 of segment 0 belongs to no tensor and is not zero/,
    };
    const lines = output.split("\n").map((line) => JSON.parse(line));
    t.same(
      lines.map(([name]) => name),
      Object.keys(words),
    );
    for (const [name, code, message, wayOut, over] of lines) {
      t.equal(code, "Refused", name);
      t.match(message, words[name] ?? /^$/, name);
      t.ok(wayOut, `${name}: a way out`);
      t.match(over, /PermissionDenied|NotFound/, `${name}: the offer is over`);
    }
    t.ok(await nothingLeft(a, 0));
  },
);

t.test("what comes at the wrong time or by a stranger is refused, and the offer goes on", async (t) => {
  const output = await python(
    a,
    `${BY_HAND}
def code(answer): return answer.get("code", "ok")
offer, ticket = begin(None)
print(code(give(ticket, 1, 0, SIZE, [memfd(GOOD)])), "segment before the list")
print(code(give(ticket, 2, 0, SIZE, [memfd(GOOD)])), "what 2")
print(code(give(ticket, 0, 0, 3, [memfd(LIST)], version=2)), "version 2")
print(code(give(ticket[:20], 0, 0, 3, [memfd(LIST)])), "cut off")
print(code(give(ticket[:47] + bytes([ticket[47] ^ 1]), 0, 0, len(LIST), [memfd(LIST)])), "wrong secret")
pid = os.fork()
if pid == 0:
    print(code(give(ticket, 0, 0, len(LIST), [memfd(LIST)])), "another process", flush=True)
    try: agent.seal_offer(offer)
    except weightline.Error as error: print(error.code, "another process seals", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(code(give(ticket, 0, 0, len(LIST), [memfd(LIST)])), "list")
print(code(give(ticket, 0, 0, len(LIST), [memfd(LIST)])), "list again")
print(code(give(ticket, 1, 1, 9, [memfd(b"x" * 9)])), "no such segment")
try: agent.seal_offer(offer)
except weightline.Error as error: print(error.code, error.message)
fd = memfd(GOOD)
print(code(give(ticket, 1, 0, SIZE, [fd])), "segment")
try: os.write(fd, b"x"); print("written after the seal")
except OSError: print("ok sealed for its giver too")
print(code(give(ticket, 1, 0, SIZE, [memfd(GOOD)])), "segment again")
held = agent.seal_offer(offer)
print(bytes(held["w"].data) == GOOD[256:] and bytes(held["v"].data) == b"abc")
for i in (offer, "0" * 32):
    try: agent.seal_offer(i)
    except weightline.Error as error: print(error.code, "sealed twice")
`,
  );
  t.same(output.split("\n"), [
    "Refused segment before the list",
    "InvalidArgument what 2",
    "Refused version 2",
    "InvalidArgument cut off",
    "PermissionDenied wrong secret",
    "PermissionDenied another process",
    "NotFound another process seals",
    "ok list",
    "AlreadyExists list again",
    "InvalidArgument no such segment",
    "InvalidArgument 1 segments were not given yet: 0",
    "ok segment",
    "ok sealed for its giver too",
    "InvalidArgument segment again",
    "True",
    "NotFound sealed twice",
    "NotFound sealed twice",
  ]);
  await evict(a, "byhand");
});

t.test("lists of tensors that cannot be: the tensor, the value and the limit, and nothing stays", async (t) => {
  const output = await python(
    a,
    `${BY_HAND}
def attempt(text, size=None):
    data = text if isinstance(text, bytes) else text.encode()
    offer, ticket = begin(None)
    answer = give(ticket, 0, 0, len(data) if size is None else size, [memfd(data)])
    print(answer.get("code"), answer.get("message"))
T = '{"dtype":"U8","shape":[1]}'
attempt('{}')
attempt('{"a":' + T + ',"a":' + T + '}')
attempt('{"a":{"alias":"b"}, "b":{"alias":"c"}, "c":' + T + '}')
attempt('{"a":{"alias":"nowhere"}, "c":' + T + '}')
attempt('{"a":{"dtype":"NEW","shape":[1]}}')
attempt('{"a":{"dtype":"U8","shape":[2],"bytes":3}}')
attempt('{"a":{"dtype":"F4","shape":[3]}}')
attempt('{"a":{"dtype":"U8","shape":[-1]}}')
attempt('{"a":{"dtype":"U8","shape":[4294967296,4294967296]}}')
attempt('{"a":{"dtype":"NEW","shape":[1],"bytes":4611686018427387905}}')
attempt('{"' + "n" * 513 + '":' + T + '}')
attempt('{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}}')
attempt('[1]')
attempt(b'{"\\xff":1}')
attempt('{"a":{"dtype":"U8","shape":[1000000000000]}}')
`,
  );
  const expected = [
    /^InvalidArgument .*it is empty/,
    /^InvalidArgument .*tensor "a" appears twice/,
    /^InvalidArgument .*alias "a" names "b", which is no tensor/,
    /^InvalidArgument .*alias "a" names "nowhere"/,
    /^InvalidArgument .*dtype NEW, which is not known/,
    /^InvalidArgument .*has 3 bytes; its dtype and shape need 2/,
    /^InvalidArgument .*12 bits, which is not whole bytes/,
    /^InvalidArgument .*not a whole number/,
    /^InvalidArgument .*passes 2\^64 bits/,
    /^InvalidArgument .*more than 4611686018427387904 bytes/,
    /^InvalidArgument .*has 513 bytes; at most 512/,
    /^InvalidArgument .*has rank 17; at most 16/,
    /^InvalidArgument .*list of tensors/,
    /^InvalidArgument .*list of tensors/,
    /^ResourceExhausted .*are needed for the holding/,
  ];
  const lines = output.split("\n");
  t.equal(lines.length, expected.length);
  for (const [i, words] of expected.entries()) {
    t.match(lines[i], words);
  }
  t.ok(await nothingLeft(a, 0));
});

t.test("mistakes of the caller are told in Python's own words", async (t) => {
  const output = await python(
    a,
    `
def attempt(call):
    try: call(); print("nothing was wrong")
    except weightline.Error as error: print(error.code, error)
offer = lambda tensors, **more: agent.offer(identity=ident("m"), tensors=tensors, **more)
attempt(lambda: offer([("w", "U8")]))
attempt(lambda: offer([("w", "U8", (1,)), ("w", "U8", (1,))]))
attempt(lambda: offer([("w", "U8", (-1,))]))
attempt(lambda: offer([("w", "U8", (1,))], aliases={"w": "w"}))
attempt(lambda: offer([("\\ud800", "U8", (1,))]))
attempt(lambda: agent.offer(identity={"model_name": ""}, tensors=[("w", "U8", (1,))]))
attempt(lambda: agent.offer(identity={"model_name": "m", "extra_parameters": {"weightline.kind": "files"}}, tensors=[("w", "U8", (1,))]))
with offer([("w", "U8", (4,)), ("v", "U8", (4,)), ("big", "U8", (1 << 30,)), ("z", "U8", (0,))]) as f:
    attempt(lambda: f.write("nowhere", b""))
    attempt(lambda: f.write("w", b"123"))
    attempt(lambda: f.write("w", [1, 2, 3, 4]))
    attempt(lambda: f.write("z", b"1"))
    attempt(lambda: f.written("w"))
    f.write("v", memoryview(b"1.2.3.4.")[::2])
    attempt(f.seal)
    f.write("w", b"1234")
    attempt(lambda: f.write("w", b"5678"))
attempt(lambda: f.write("big", b""))
attempt(f.seal)
f.withdraw()
`,
  );
  const expected = [
    /^InvalidArgument tensors\[0\] .* is not \(name, dtype, shape\)/,
    /^InvalidArgument tensor 'w' appears twice/,
    /^InvalidArgument tensors\[0\] 'w' has shape \(-1,\)/,
    /^InvalidArgument tensor 'w' appears twice/,
    /^InvalidArgument a tensor's name is not valid Unicode/,
    /^InvalidArgument identity.model_name is required/,
    /^Refused an identity with weightline.kind files is for models that are loaded/,
    /^InvalidArgument the offer has no tensor 'nowhere'/,
    /^InvalidArgument tensor 'w' has 4 bytes, 3 were given/,
    /^InvalidArgument the data of tensor 'w' has no buffer: list; way out: give bytes/,
    /^InvalidArgument tensor 'z' has 0 bytes, 1 were given/,
    /^InvalidArgument tensor 'w' has no buffer; way out: take it with buffer/,
    /^InvalidArgument 2 tensors are not written: big, w/,
    /^Refused tensor 'w' was handed to the agent already/,
    /^Refused this offer is over/,
    /^InvalidArgument 1 tensors are not written: big/,
  ];
  const lines = output.split("\n");
  t.equal(lines.length, expected.length, output);
  for (const [i, words] of expected.entries()) {
    t.match(lines[i], words);
  }
  t.ok(await nothingLeft(a, 0));
});

t.test("caps: the ninth offer of a process is refused, and so is the forty-ninth of the node", async (t) => {
  const output = await python(
    a,
    `${BY_HAND}
open_offers = [begin(None) for _ in range(8)]
try: begin(None)
except weightline.ResourceExhausted as error: print(error.field, error.value, error.limit)
agent.withdraw_offer(open_offers[0][0])
print(len(begin(None)))
pids = []
r, w = os.pipe()
for i in range(6):
    pid = os.fork()
    if pid == 0:
        count = 0
        try:
            for _ in range(8): begin(None); count += 1
        except weightline.ResourceExhausted as error: os.write(w, ("%s %s\\n" % (error.value, error.limit)).encode())
        os.write(w, b"%d\\n" % count)
        time.sleep(60)
    pids.append(pid)
told = b""
while sum(part.isdigit() for part in told.split(b"\\n")) < 6: told += os.read(r, 999)
print(told.decode().replace("\\n", ";"))
for pid in pids: os.kill(pid, 9)
`,
  );
  const [first, second, third] = output.split("\n");
  t.equal(first, "offers 8 8");
  t.equal(second, "2");
  const begun = (third ?? "").split(";").flatMap((part) => (/^\d+$/.test(part) ? [Number(part)] : []));
  t.equal(
    begun.reduce((sum, count) => sum + count, 0),
    40,
    "beside its own eight",
  );
  t.ok(third?.includes("48 48"), "others are told of the node's limit");
  t.ok(await until(async () => (await a.metric("weightline_offers ")) === 0));
});

t.test("the mover dies in the middle: the copy is done again, and the object is right", async (t) => {
  const size = 400 << 20;
  const giver = pod(
    a,
    `
block = pattern("mover", 1 << 20)
f = agent.offer(identity=ident("again"), tensors=[("w", "U8", (${size},))])
view = f.buffer("w")
for at in range(0, ${size}, 1 << 20): view[at:at + (1 << 20)] = block
print("filled", flush=True)
sys.stdin.readline()
f.written("w")
held = f.seal()
print("sealed", all(bytes(held["w"].data[at:at + (1 << 20)]) == block for at in range(0, ${size}, 1 << 20)), flush=True)`,
  );
  await giver.waitFor(/filled/, 60_000);
  const before = await a.metric("weightline_mover_restarts_total");
  giver.say("go\n");
  t.ok(
    await until(async () => {
      const [filling] = await holdings(a);
      return filling !== undefined && filling.verifiedBytes > 0n && filling.verifiedBytes < BigInt(size);
    }),
    "the copy runs",
  );
  const mover = await runningMoverOf(a.program.pid);
  process.kill(mover, "SIGKILL");
  await giver.waitFor(/sealed True/, 60_000);
  t.equal(await a.metric("weightline_mover_restarts_total"), before + 1, "it was killed");
  await evict(a, "again");
});

t.test("the agent dies in the middle: the next one deletes what was begun", async (t) => {
  const giver = pod(
    b,
    `f = agent.offer(identity=ident("half"), tensors=[("w", "U8", (600 << 20,)), ("v", "U8", (600 << 20,))])
f.write("v", bytes(600 << 20))
print("half", flush=True)
time.sleep(60)`,
  );
  await giver.waitFor(/half/, 60_000);
  t.equal(folders(b).length, 1);
  b.program.kill("SIGKILL");
  await b.program.exited;
  t.equal(folders(b).length, 1, "it lies there");
  const again = await cluster.startAgent("b", ["--store", b.store, "--socket", b.socket]);
  t.ok(await nothingLeft(again, 0));
  giver.kill("SIGKILL");
});

t.test("offers that come and go leave no descriptor and no thread behind", async (t) => {
  const { pid } = a.program;
  const mover = await runningMoverOf(pid);
  const count = (id: number) => readdirSync(`/proc/${id}/fd`).length;
  const threads = (id: number) => readdirSync(`/proc/${id}/task`).length;
  const cycle = `
for i in range(40):
    if i % 4 == 3 and i > 3: continue
    f = agent.offer(identity=ident("n%d" % i), tensors=[("w", "U8", (100000,))])
    if i % 4 == 0: f.withdraw()
    elif i % 4 == 1: f.write("w", bytes(100000)); f.withdraw()
    elif i % 4 == 2:
        f.write("w", pattern(str(i), 100000)); f.seal().release()
        agent_evict.append("n%d" % i)
print(len(os.listdir("/proc/self/fd")))`;
  await python(a, `agent_evict = []\n${cycle}`);
  const before = [count(pid), count(mover), threads(pid), threads(mover)];
  const own = await python(
    a,
    `agent_evict = []\nbase = len(os.listdir("/proc/self/fd"))\n${cycle.replace("n%d", "k%d").replace("str(i)", '"k" + str(i)')}\nprint(base)`,
  );
  const [after, base] = own.split("\n");
  t.ok(Number(after) - Number(base) <= 10, "the pod keeps only what it has not ended");
  t.ok(
    await until(() =>
      [count(pid), count(mover), threads(pid), threads(mover)].every((now, i) => now <= (before[i] ?? 0) + 2),
    ),
    `before ${before}, after ${[count(pid), count(mover), threads(pid), threads(mover)]}`,
  );
});
