import { dirname } from "node:path";
import { type Check, error, note, ok, warning } from "./check.ts";

/** One of the agent's two sockets. */
export interface SocketFacts {
  path: string;
  /** "missing", "other" (no socket), "dead" (nobody listens), "listening". */
  state: "missing" | "other" | "dead" | "listening";
  /** Permission bits; 0 where it is missing. */
  mode: number;
  /** Permission bits of its folder; 0 where that is missing. */
  folderMode: number;
}

const EVERYBODY_WRITES = 0o002;
const EVERYBODY_ENTERS = 0o001;
/** The kernel's limit for a socket's path. */
const PATH_MAX_BYTES = 107;
/** Folders that hold much else: a pod that mounts one sees all of it. */
const SHARED_FOLDERS = new Set(["/", "/run", "/var/run", "/tmp", "/var/tmp", "/dev/shm", "/var/lib"]);

const octal = (mode: number) => `0${(mode & 0o7777).toString(8)}`;

export function socketChecks(local: SocketFacts, descriptors: SocketFacts): Check[] {
  return [socket("socket", local), socket("descriptor-socket", descriptors), folder(local)];
}

function socket(name: string, { path, state, mode }: SocketFacts): Check {
  const bytes = Buffer.byteLength(path);
  if (state !== "listening") {
    const evidence = { missing: "is not there", other: "is no socket", dead: "is dead: nobody listens on it" }[state];
    return error(
      name,
      `${path} ${evidence}`,
      state === "other"
        ? "give another --socket"
        : "start the agent again; in pods mount the socket's folder, not its file",
    );
  }
  return (mode & EVERYBODY_WRITES) === 0
    ? warning(
        name,
        `${path} has mode ${octal(mode)}: processes of other users cannot connect`,
        `chmod 0666 ${path}; the agent knows callers by the kernel, not by the mode`,
      )
    : ok(name, `${path} is listened on, mode ${octal(mode)}, ${bytes} of ${PATH_MAX_BYTES} bytes`);
}

function folder({ path, folderMode }: SocketFacts): Check {
  const name = dirname(path);
  if ((folderMode & EVERYBODY_ENTERS) === 0) {
    return warning(
      "socket-folder",
      `${name} has mode ${octal(folderMode)}: other users, pods' too, cannot reach the socket in it`,
      `chmod 0755 ${name}`,
    );
  }
  return SHARED_FOLDERS.has(name)
    ? note(
        "socket-folder",
        `the socket lies in ${name} itself: a pod that mounts its folder sees all that is there`,
        "give the socket a folder of its own (--socket /run/weightline/agent.sock)",
      )
    : ok("socket-folder", `${name} is a folder of the socket's own, mode ${octal(folderMode)}: pods can mount it`);
}
