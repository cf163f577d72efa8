// A pod gives a file of its own file system, whose server does not answer: nobody else waits for it.
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { createCluster } from "../../support/cluster.ts";
import { pythonEnvironment, ROOT, runCommand, startCommand } from "../../support/program.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const agent = await cluster.startAgent("a");
const folder = `${cluster.folder}/fuse`;
mkdirSync(folder);

const GIVER = `
import base64, json, os, signal, socket, struct, sys, weightline
from weightline import memory, transport
agent = weightline.connect()
def ask(message, fds):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(20)
    s.connect(agent.path + ".fd")
    socket.send_fds(s, [message], fds)
    return s.recv(65536).decode()
fd = os.open(sys.argv[1], os.O_RDWR)
print("ticket", ask(b"WLFD" + struct.pack("<I", 1) + bytes(48), [fd]), flush=True)
for i in range(3):
    o = transport.call(agent.path, "Offer", {"identity": {"modelName": "fuse", "extraParameters": {"weightline.kind": "t"}}, "alone": True})
    ticket = base64.b64decode(o["ticket"]["id"]) + base64.b64decode(o["ticket"]["secret"])
    print("offer", ask(b"WLGV" + struct.pack("<I", 1) + ticket + struct.pack("<IIQ", 0, 0, 8448), [fd]), flush=True)
print("done", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
`;

const skip = existsSync("/dev/fuse") ? false : "this kernel has no FUSE";

t.test("a FUSE file whose close never ends: refused; pods and the agent's stop go on", { skip }, async (t) => {
  const server = startCommand(["python3", `${ROOT}test/support/fuse_server.py`, folder]);
  t.teardown(async () => {
    server.kill("SIGKILL");
    await runCommand(["umount", "-l", folder]);
  });
  await server.waitFor(/mounted/);
  const giver = startCommand(["python3", "-u", "-c", GIVER, `${folder}/file`], {
    env: pythonEnvironment({ MX_AGENT_SOCKET: agent.socket }),
  });
  await giver.waitFor(/done/, 60_000);
  const lines = giver.output().split("\n");
  t.match(lines[0], /ticket .*InvalidArgument.*a ticket comes without descriptors/);
  t.equal(lines.filter((line) => /^offer .*Refused.*is no memfd/.test(line)).length, 3, giver.output());
  // The server names threads.
  const threads = () => readdirSync(`/proc/${agent.program.pid}/task`);
  const asked = (name: RegExp) =>
    [...server.output().matchAll(name)].filter(([, thread = ""]) => threads().includes(thread)).length;
  for (let i = 0; i < 200 && asked(/FLUSH (\d+)/g) === 0; i++) {
    await sleep(50);
  }
  t.equal(asked(/FLUSH (\d+)/g), 1, "one thread of the agent's hangs in its close");
  t.equal(asked(/(?:STATFS|GETATTR) (\d+)/g), 0, "the file was asked nothing else");
  for (let i = 0; i < 3; i++) {
    const output = await agent.python(`
with agent.offer(identity={"model_name": "m${i}", "extra_parameters": {"weightline.kind": "t"}}, tensors=[("w", "U8", (9,))]) as filling:
    filling.write("w", b"123456789")
    held = filling.seal()
print(bytes(held["w"].data))`);
    t.equal(output, "b'123456789'", "others offer and attach");
  }
  t.equal((await agent.client.status({})).leases, 0);
  // The server's file system is ended, so that its hanging files keep nobody from ending.
  t.ok(await server.exited.then(() => true));
  t.match(server.output(), /aborted/);
  t.equal(await agent.program.stop(), 0, "and the agent ends");
});
