// Lists and gets one worker in a tight loop, in a process of its own: parameters are the port, the source's revision and the worker's
// id. Says "reading" once it has seen the worker, "more" after each hundred rounds, and at the end of its input what it saw.
import { P2pService, SourceStatus } from "@weightline/proto/p2p";
import { createGrpcChannel } from "@weightline/runtime/channels";
import { identityOf } from "./identity.ts";

const [port = "", revision = "", workerId = ""] = process.argv.slice(2);
const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: Number(port) }] });
const p2p = channel.client(P2pService);
const identity = identityOf({ revision });
const versions = new Set<string>();
let rounds = 0;
let missed = 0;
let over = false;
process.stdin.on("end", () => {
  over = true;
});
process.stdin.resume();
const say = (line: string) => process.stdout.write(`${line}\n`);

while (!over) {
  const { instances } = await p2p.listSources({ identity, statusFilter: SourceStatus.READY });
  const [listed] = instances;
  const got = await p2p.getMetadata({ mxSourceId: listed?.mxSourceId ?? "none", workerId });
  if (instances.length !== 1 || listed?.workerId !== workerId || got.worker?.status !== SourceStatus.READY) {
    missed += 1;
  }
  versions.add(listed?.topology["version"] ?? "");
  rounds += 1;
  if (rounds === 1) {
    say("reading");
  }
  if (rounds % 100 === 0) {
    say("more");
  }
}
say(JSON.stringify({ rounds, missed, versions: versions.size }));
channel.close();
