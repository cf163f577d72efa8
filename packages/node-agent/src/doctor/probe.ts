import { readFileSync, readlinkSync, statSync } from "node:fs";
import { connect } from "node:net";
import { dirname } from "node:path";
import { PeerService } from "@weightline/proto/peer";
import { fromRpcError, type GrpcChannel, parseAddress } from "@weightline/runtime";
import type { DialPeer } from "../peers/peer-security.ts";
import { type ProcessLimits, readLimits } from "./limits.ts";
import type { PeerFacts } from "./peers.ts";
import type { SocketFacts } from "./sockets.ts";

/** How long one port of a peer may take to answer. */
const PEER_TIMEOUT_MS = 2000;
/** /proc/net/unix: the flag of a socket that is listened on. */
const LISTENING = 0x10000;
/** Inode numbers of the kernel's first namespaces (linux/proc_ns.h). */
const FIRST_PID_NAMESPACE = "pid:[4026531836]";
const FIRST_CGROUP_NAMESPACE = "cgroup:[4026531835]";

export function limitsOf(pid: number | undefined): ProcessLimits | undefined {
  try {
    return pid === undefined ? undefined : readLimits(readFileSync(`/proc/${pid}/limits`, "utf8"));
  } catch {
    return undefined;
  }
}

/** CapEff of this process. */
export function capabilities(): bigint {
  const [, hex = "0"] = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8")) ?? [];
  return BigInt(`0x${hex}`);
}

export function namespaces(): { hostPids: boolean; hostCgroups: boolean } {
  const isFirst = (name: string, first: string) => {
    try {
      return readlinkSync(`/proc/self/ns/${name}`) === first;
    } catch {
      return false;
    }
  };
  return { hostPids: isFirst("pid", FIRST_PID_NAMESPACE), hostCgroups: isFirst("cgroup", FIRST_CGROUP_NAMESPACE) };
}

function modeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.mode ?? 0;
}

/** A socket of this machine, from its file and the kernel's table: nobody is connected to. */
export function socketFacts(path: string): SocketFacts {
  const status = statSync(path, { throwIfNoEntry: false });
  const isListening = readFileSync("/proc/net/unix", "utf8")
    .split("\n")
    .some((line) => line.endsWith(` ${path}`) && (Number.parseInt(line.split(/\s+/)[3] ?? "0", 16) & LISTENING) !== 0);
  const state = status === undefined ? "missing" : !status.isSocket() ? "other" : isListening ? "listening" : "dead";
  return { path, state, mode: status?.mode ?? 0, folderMode: modeOf(dirname(path)) };
}

/** "" when the address takes a TCP connection, else why not. */
function dial(address: string): Promise<string> {
  const { host, port } = parseAddress(address, "data address");
  return new Promise((resolve) => {
    const socket = connect({ host, port });
    const end = (why: string) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(why);
    };
    const timer = setTimeout(() => end(`no answer within ${PEER_TIMEOUT_MS} ms`), PEER_TIMEOUT_MS);
    socket.once("connect", () => end(""));
    socket.once("error", (error: NodeJS.ErrnoException) => end(error.code ?? error.message));
  });
}

/** Asks another node's agent where its mover listens, and dials that. */
export async function peerFacts(name: string, address: string, dialPeer: DialPeer): Promise<PeerFacts> {
  const facts: PeerFacts = { name, address, agent: "", dataAddress: "", data: "" };
  let channel: GrpcChannel | undefined;
  try {
    channel = dialPeer(name, address);
    const { endpoints } = await channel.client(PeerService).find({}, { timeoutMs: PEER_TIMEOUT_MS });
    facts.dataAddress = endpoints.find(({ transport }) => transport === "stream")?.address ?? "";
    facts.data = facts.dataAddress === "" ? "" : await dial(facts.dataAddress);
  } catch (error) {
    facts.agent = fromRpcError(error).message;
  } finally {
    channel?.close();
  }
  return facts;
}
