import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { type DescriptorEvent, type DescriptorGrant, native } from "@weightline/rdma-native";
import type { ProgramAnswer, ProgramRequest } from "./descriptor-program.ts";
import { newId } from "./native-helpers.ts";

/** A program's end and what it wrote. */
export interface Ended {
  code: number | null;
  output: string;
}

/** Runs a program without blocking this thread, which servers' events need. */
export function runProgram(command: readonly string[], options: { timeoutMs?: number } = {}): Promise<Ended> {
  const [program = "", ...parameters] = command;
  return ended(
    spawn(program, parameters, { stdio: ["ignore", "pipe", "inherit"], timeout: options.timeoutMs ?? 60_000 }),
  );
}

/** Waits for a child's end and collects its output. */
export function ended(child: ChildProcess): Promise<Ended> {
  let output = "";
  child.stdout?.on("data", (data: Buffer) => {
    output += data.toString();
  });
  return new Promise((resolve) => child.once("close", (code) => resolve({ code, output: output.trim() })));
}

/** The first line that a child writes. */
export function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    child.stdout?.on("data", (data: Buffer) => {
      text += data.toString();
      if (text.includes("\n")) {
        resolve(text.slice(0, text.indexOf("\n")));
      }
    });
    child.once("close", (code) => reject(new Error(`the child ended with ${code} after "${text}"`)));
  });
}

/** Waits until `holds` is true; false after ten seconds. */
export async function eventually(holds: () => boolean | Promise<boolean>): Promise<boolean> {
  for (let i = 0; i < 500; i++) {
    if (await holds()) {
      return true;
    }
    await sleep(20);
  }
  return holds();
}

/** A TypeScript program that has the addon as `native`, for `node`. */
export function nodeProgram(body: string): string[] {
  const module = new URL("../src/index.ts", import.meta.url).pathname;
  return [
    process.execPath,
    "--disable-warning=ExperimentalWarning",
    "--input-type=module-typescript",
    "-e",
    `import { native } from ${JSON.stringify(module)};\n${body}`,
  ];
}

/** A system call that fails in the program that is started, as on a kernel or in a container without it. */
export interface RefusedCall {
  /** Its number on x86-64. */
  number: number;
  errno: number;
  /** Only with this value in this argument, counted from 0. */
  argument?: { index: number; value: number };
}

const SECCOMP = `
import ctypes, os, struct, sys
number, errno, index, value = map(int, sys.argv[1:5])
LOAD, EQUAL, RETURN, ALLOW = 0x20, 0x15, 0x06, 0x7fff0000
code = [(LOAD, 0, 0, 0), (EQUAL, 0, 3 if index >= 0 else 1, number)]
if index >= 0: code += [(LOAD, 0, 0, 16 + 8 * index), (EQUAL, 0, 1, value)]
code += [(RETURN, 0, 0, 0x00050000 | errno), (RETURN, 0, 0, ALLOW)]
program = b"".join(struct.pack("<HBBI", *one) for one in code)
buffer = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
for arguments in ((38, 1, 0, 0, 0), (22, 2, ctypes.addressof(filter), 0, 0)):
    if libc.prctl(*[ctypes.c_ulong(one) for one in arguments]): raise OSError(ctypes.get_errno(), "prctl")
os.execv(sys.argv[5], sys.argv[5:])
`;

/** The command with the call refused. */
export function withoutCall(call: RefusedCall, command: readonly string[]): string[] {
  const { index, value } = call.argument ?? { index: -1, value: 0 };
  return ["python3", "-c", SECCOMP, ...[call.number, call.errno, index, value].map(String), ...command];
}

/** The command with at most so many open files. */
export function withFileLimit(limit: number, command: readonly string[]): string[] {
  const code = `import os, resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (${limit}, ${limit}))\nos.execv(sys.argv[1], sys.argv[1:])`;
  return ["python3", "-c", code, ...command];
}

/** Makes a holding's files as the mover would, unflagged. */
export function makeHolding(store: string, files: Record<string, Buffer>): string {
  const id = newId();
  const path = `${store}/holdings/${id}/files`;
  mkdirSync(path, { recursive: true });
  for (const [name, data] of Object.entries(files)) {
    writeFileSync(`${path}/${name}`, data);
  }
  return id;
}

/** A Python client of the descriptor socket: `path`, `ticket` (the whole message) and `ask(path, message, fds)`. */
const CLIENT = `
import array, os, socket, struct, sys
def connect(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(20); s.connect(path); return s
def take(s):
    got, total = [], None
    while total is None or len(got) < total:
        data, anc, flags, _ = s.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
        a = array.array("i")
        for l, k, c in anc: a.frombytes(c[:len(c) - len(c) % 4])
        if not a:
            return None, data.decode()
        total, first = struct.unpack("<II", data)
        assert first == len(got) and len(a) == min(253, total - first) and not flags & socket.MSG_CTRUNC
        got += list(a)
    return got, total
def ask(path, message, fds=()):
    s = connect(path)
    if fds: socket.send_fds(s, [message], fds)
    else: s.send(message)
    return take(s)
`;

/** What the ticket is for; `pid` and `ttlMs` when it is not the client's own, for ten seconds. */
export type TicketOptions = Pick<DescriptorGrant, "holdingId" | "paths"> & { ttlMs?: number; pid?: number };

/** A descriptor server, in this process or another one. */
export interface TicketOffice {
  readonly path: string;
  grant(grant: DescriptorGrant): void | Promise<void>;
}

/** Runs Python that has a ticket of its own; gives what it wrote. */
export async function withTicket(office: TicketOffice, options: TicketOptions, body: string): Promise<string> {
  const ticketId = randomBytes(16);
  const secret = randomBytes(32);
  // It waits for a line: its process id must be known first.
  const code = `${CLIENT}\nsys.stdin.readline()\npath, ticket = sys.argv[1], b"WLFD" + struct.pack("<I", 1) + bytes.fromhex(sys.argv[2])\n${body}`;
  const child = spawn("python3", ["-c", code, office.path, Buffer.concat([ticketId, secret]).toString("hex")], {
    stdio: ["pipe", "pipe", "inherit"],
    timeout: 60_000,
  });
  const { holdingId, paths } = options;
  const pid = options.pid ?? child.pid ?? 0;
  await office.grant({ ticketId, secret, holdingId, paths, pid, ttlMs: options.ttlMs ?? 10_000 });
  if (options.ttlMs !== undefined) {
    await sleep(options.ttlMs + 50);
  }
  child.stdin.end("go\n");
  return (await ended(child)).output;
}

/** Tries everything that would change a file, and what is allowed; gives the names of what succeeded. */
export async function attempts(office: TicketOffice, holdingId: string, path: string): Promise<string[]> {
  const output = await withTicket(
    office,
    { holdingId, paths: [path] },
    `
import mmap
fd = ask(path, ticket)[0][0]
def attempt(what, call):
    try: call(); print(what)
    except (OSError, ValueError): pass
attempt("read", lambda: os.pread(fd, 1, 0))
attempt("map", lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ))
attempt("write", lambda: os.pwrite(fd, b"x", 0))
attempt("truncate", lambda: os.ftruncate(fd, 0))
attempt("map writable", lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE))
attempt("reopen", lambda: os.open("/proc/self/fd/%d" % fd, os.O_RDWR))
attempt("chmod", lambda: os.fchmod(fd, 0o777))
attempt("truncate by name", lambda: os.truncate("/proc/self/fd/%d" % fd, 0))
`,
  );
  return output.split("\n");
}

/** A server in this process. */
export async function createOffice(store: string, path: string) {
  const view = await native.openStoreView(store, "");
  const events: DescriptorEvent[] = [];
  const handle = native.createDescriptorServer(path, view, (event) => events.push(event));
  return {
    path,
    view,
    events,
    handle,
    grant: (grant: DescriptorGrant) => native.grantDescriptors(handle, grant),
    close() {
      native.closeDescriptorServer(handle);
      native.closeStoreView(view);
    },
  };
}

/** A server in a process of its own, started by `wrap`'s command. */
export async function startOffice(
  store: string,
  socket: string,
  options: { mount?: string; wrap?: (command: string[]) => string[] } = {},
) {
  const program = new URL("./descriptor-program.ts", import.meta.url).pathname;
  const command = [
    process.execPath,
    "--disable-warning=ExperimentalWarning",
    program,
    store,
    options.mount ?? "",
    socket,
  ];
  const [first = "", ...parameters] = (options.wrap ?? ((same) => same))(command);
  const child = spawn(first, parameters, { stdio: ["ignore", "inherit", "inherit", "ipc"], serialization: "advanced" });
  let settle: ((answer: ProgramAnswer | Error) => void) | undefined;
  child.on("message", (answer) => settle?.(answer as ProgramAnswer));
  child.once("close", (code) => settle?.(new Error(`the server ended with ${code}`)));
  const next = () =>
    new Promise<ProgramAnswer>((resolve, reject) => {
      settle = (answer) => (answer instanceof Error ? reject(answer) : resolve(answer));
    });
  const ask = (request: ProgramRequest) => {
    const answer = next();
    child.send(request);
    return answer;
  };
  const { level } = await next();
  return {
    path: socket,
    level,
    ask,
    async grant(grant: DescriptorGrant) {
      await ask({ kind: "grant", grant });
    },
    close() {
      child.kill("SIGKILL");
    },
  };
}
