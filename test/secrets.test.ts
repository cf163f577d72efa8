// No ticket, secret or memory address in logs, metrics and errors, after things went wrong too.
import t from "tap";
import { createCluster } from "./support/cluster.ts";
import { runningMoverOf } from "./support/processes.ts";
import { writeTensors } from "./support/safetensors-file.ts";

const cluster = await createCluster();
t.teardown(() => cluster.stop());
const controlPlane = await cluster.startControlPlane();
const a = await cluster.startAgent("a", ["--log-level", "trace"]);
const b = await cluster.startAgent("b", ["--log-level", "trace"]);
const path = `${cluster.folder}/m.safetensors`;
writeTensors(path, { w: { dtype: "U8", shape: [5_000_000] } });
const loaded = await cluster.mxctl(["load", path, "--model-name", "m"], a);

/** Prints every secret that it was given, in base64, and every error that it met. */
const PROGRAM = `
import base64, json, os, socket, struct
from weightline import transport
secrets, errors = [], []
def keep(ticket):
    secrets.extend([ticket["id"], ticket["secret"]])
    return base64.b64decode(ticket["id"]) + base64.b64decode(ticket["secret"])
def ask(message, fds=()):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(agent.path + ".fd")
    socket.send_fds(s, [message], fds) if fds else s.send(message)
    data, got, _, _ = socket.recv_fds(s, 65536, 9)
    for fd in got: os.close(fd)
    if not got: errors.append(data.decode())
    return got
for event in transport.stream(agent.path, "Acquire", {"wanted": {"model": {"modelName": "m"}}}, 60):
    held = event.get("held", {})
ticket = keep(held["ticket"])
assert ask(b"WLFD" + struct.pack("<I", 1) + ticket)
ask(b"WLFD" + struct.pack("<I", 1) + ticket)
ask(b"WLFD" + struct.pack("<I", 2) + ticket)
offer = transport.call(agent.path, "Offer", {"identity": {"modelName": "o", "extraParameters": {"weightline.kind": "t"}}})
ticket = keep(offer["ticket"])
ask(b"WLGV" + struct.pack("<I", 1) + ticket + struct.pack("<IIQ", 0, 0, 9), [0])
for method, message in (("Attach", {"leaseId": "none"}), ("SealOffer", {"offerId": offer["offerId"]}), ("Load", {"path": "/nowhere", "modelName": "x"})):
    try: transport.call(agent.path, method, message)
    except Exception as error: errors.append(str(error))
print(json.dumps([secrets, errors]))
`;

t.test("what pods and peers were trusted with is nowhere to be read", async (t) => {
  t.equal(loaded.code, 0);
  const [secrets, errors]: [string[], string[]] = JSON.parse(await b.python(PROGRAM));
  t.equal(secrets.length, 4);
  t.ok(errors.length >= 5, `${errors.length} things went wrong`);
  // A mover that dies in a transfer, and what it was told.
  process.kill(await runningMoverOf(a.program.pid), "SIGKILL");
  await a.program.waitFor(/"event":"mover-ended"/);
  const texts = {
    a: a.program.output(),
    b: b.program.output(),
    "control plane": controlPlane.output(),
    metrics: (await a.metrics()) + (await b.metrics()),
    errors: errors.join("\n"),
    nodes: (await cluster.mxctl(["nodes", "--output", "json"])).stdout,
    transfers: (await cluster.mxctl(["transfers", "--output", "json"])).stdout,
  };
  t.match(texts.b, /"event":"descriptors-refused"/, "the refusals were logged");
  for (const [name, text] of Object.entries(texts)) {
    for (const secret of secrets) {
      const bytes = Buffer.from(secret, "base64");
      for (const form of [secret, bytes.toString("hex"), bytes.toString("base64url")]) {
        t.notOk(text.includes(form), `${name}: no ticket`);
      }
    }
    t.notMatch(text, /\b0x[0-9a-f]{8,}\b|\b(?:7f|55|56)[0-9a-f]{10}\b/, `${name}: no address`);
  }
});
