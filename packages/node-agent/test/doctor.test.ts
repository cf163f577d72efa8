// Every check of doctor at every level that it can have.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import t from "tap";
import type { Check } from "../src/doctor/check.ts";
import { clockChecks } from "../src/doctor/clock.ts";
import { kernelChecks } from "../src/doctor/kernel.ts";
import { limitChecks, readLimits } from "../src/doctor/limits.ts";
import { memoryChecks } from "../src/doctor/memory.ts";
import { moverCheck } from "../src/doctor/mover.ts";
import { findNixl } from "../src/doctor/nixl-places.ts";
import { controlPlaneCheck, peerChecks } from "../src/doctor/peers.ts";
import { limitsOf, socketFacts } from "../src/doctor/probe.ts";
import { processCheck } from "../src/doctor/processes.ts";
import { socketChecks } from "../src/doctor/sockets.ts";
import { storeChecks } from "../src/doctor/store.ts";

const GIB = 2 ** 30;
const levels = (checks: readonly Check[]) => Object.fromEntries(checks.map(({ name, level }) => [name, level]));
const find = (checks: readonly Check[], name: string): Check => {
  const found = checks.find((check) => check.name === name);
  if (found === undefined) {
    throw new Error(`no check ${name}`);
  }
  return found;
};
/** What is not right says what to do. */
const hasCure = ({ level, cure }: Check) => level === "ok" || level === "note" || cure !== "";

t.test("kernel: each feature by version, right and what was seen", async (t) => {
  const facts = {
    release: "6.18.0-x",
    capabilities: 0xffffffffffn,
    protection: "detached read-only mount",
    callerSource: "SO_PEERPIDFD",
  } as const;
  t.same(new Set(Object.values(levels(kernelChecks(facts)))), new Set(["ok"]));
  const old = kernelChecks({ release: "5.4.0", capabilities: 0n, protection: "plain", callerSource: "pidfd_open" });
  t.same(levels(old), {
    kernel: "error",
    callers: "note",
    cgroups: "note",
    "immutable-flag": "note",
    protection: "warning",
  });
  t.ok(old.every(hasCure));
  t.match(find(old, "kernel").evidence, /5\.4\.0 has no openat2 \(5\.6\)/);
  t.match(find(old, "protection").evidence, /no mount_setattr \(5\.12\)/);
  const common = kernelChecks({ ...facts, release: "5.15.0", callerSource: "pidfd_open" });
  t.same(levels(common), {
    kernel: "ok",
    callers: "note",
    cgroups: "note",
    "immutable-flag": "note",
    protection: "ok",
  });
  t.match(
    find(common, "immutable-flag").evidence,
    /no immutable flag on tmpfs \(6\.0\): .*every start digests all holdings/,
  );
  const weak = kernelChecks({ ...facts, capabilities: 0n, protection: "plain" });
  t.match(find(weak, "immutable-flag"), { level: "warning", evidence: /no CAP_LINUX_IMMUTABLE/ });
  t.match(find(weak, "protection"), { evidence: /no CAP_SYS_ADMIN/, cure: /--store-ro/ });
});

t.test("44: ulimit -l 64: named with its limit; stream is used, and is the slower path", async (t) => {
  const places = ["a place"];
  const small = { memlock: 64 * 1024, openFiles: 1024 };
  const facts = { agent: small, mover: small, ipcLock: false, memoryLimitBytes: 64 * GIB, nixlPlaces: places };
  const without = limitChecks({ ...facts, nixl: undefined });
  t.match(find(without, "nixl"), { level: "note", evidence: /not installed \(looked in a place\).*slower path/ });
  t.match(find(without, "memlock-mover"), { level: "note", evidence: /64\.0 KiB of memory \(RLIMIT_MEMLOCK\)/ });
  const withNixl = limitChecks({ ...facts, nixl: "/opt/nvidia/nvda_nixl/lib/libnixl_capi.so" });
  for (const who of ["agent", "mover"]) {
    t.match(find(withNixl, `memlock-${who}`), {
      level: "warning",
      evidence: /64\.0 KiB.*64\.0 GiB.*the stream transport is used, which is the slower path/,
      cure: /ulimit -l unlimited/,
    });
    t.match(find(withNixl, `open-files-${who}`), { level: "warning", evidence: /1024 files.*8192/, cure: /ulimit -n/ });
  }
  t.match(find(limitChecks({ ...facts, ipcLock: true, nixl: "/x" }), "memlock-mover"), {
    level: "note",
    evidence: /64\.0 KiB.*IPC_LOCK lifts.*slower path/,
  });
  const enough = { memlock: Number.POSITIVE_INFINITY, openFiles: 1_048_576 };
  t.same(levels(limitChecks({ ...facts, agent: enough, mover: undefined, nixl: undefined })), {
    nixl: "note",
    "memlock-agent": "ok",
    "memlock-mover": "note",
    "open-files-agent": "ok",
    "open-files-mover": "note",
  });
  t.match(
    readLimits("Max open files            20000   20000   files\nMax locked memory         65536   unlimited  bytes\n"),
    {
      memlock: 65536,
      openFiles: 20000,
    },
  );
  t.equal(readLimits("Max open files  unlimited  unlimited  files"), undefined);
  t.ok((limitsOf(process.pid)?.openFiles ?? 0) > 0, "this process's own");
  t.equal(limitsOf(2 ** 22 + 1), undefined, "a process that is not there");
});

t.test("NIXL is found at its places, in their order", async (t) => {
  const folder = mkdtempSync(`${tmpdir()}/weightline-nixl-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  t.match(findNixl({}).places, [/MX_NIXL_LIBRARY \(not set\)/, /NIXL_PREFIX \(not set\)/]);
  mkdirSync(`${folder}/lib64/deep`, { recursive: true });
  writeFileSync(`${folder}/lib64/deep/libnixl_capi.so.0`, "");
  t.equal(findNixl({ NIXL_PREFIX: folder }).path, `${folder}/lib64/deep/libnixl_capi.so.0`);
  const library = `${folder}/own.so`;
  t.not(findNixl({ MX_NIXL_LIBRARY: library }).path, library, "a file that is not there");
  writeFileSync(library, "");
  t.equal(findNixl({ MX_NIXL_LIBRARY: library, NIXL_PREFIX: folder }).path, library);
});

t.test("memory: the limit against what is used, the tmpfs, RAM and the cgroup", async (t) => {
  const fine = {
    store: "/s",
    limit: 10 * GIB,
    used: GIB,
    tmpfsTotal: 20 * GIB,
    tmpfsFree: 19 * GIB,
    ram: 64 * GIB,
    cgroupLimit: 32 * GIB,
  };
  t.same(levels(memoryChecks(fine)), { memory: "ok", "store-size": "ok", ram: "ok", "cgroup-memory": "ok" });
  const over = memoryChecks({ ...fine, used: 11 * GIB });
  t.match(find(over, "memory"), {
    level: "warning",
    evidence: /11\.0 GiB, above the limit of 10\.0 GiB/,
    cure: /evict/,
  });
  const shm = memoryChecks({ ...fine, tmpfsTotal: 64 * 2 ** 20, tmpfsFree: 2 ** 20 });
  t.match(find(shm, "store-size"), {
    level: "warning",
    evidence: /tmpfs of \/s has 64\.0 MiB.*less than the limit of 10\.0 GiB.*refused before its first byte/,
    cure: /remount,size=/,
  });
  const shared = memoryChecks({ ...fine, tmpfsFree: 5 * GIB });
  t.match(find(shared, "store-size"), { level: "warning", evidence: /others use it too/ });
  t.match(find(memoryChecks({ ...fine, ram: 8 * GIB }), "ram"), { level: "error", cure: /--memory-limit/ });
  t.match(find(memoryChecks({ ...fine, ram: 10.5 * GIB }), "ram"), { level: "warning" });
  t.match(find(memoryChecks({ ...fine, cgroupLimit: 9 * GIB }), "cgroup-memory"), {
    level: "error",
    evidence: /may have 9\.0 GiB/,
  });
  t.match(find(memoryChecks({ ...fine, cgroupLimit: undefined }), "cgroup-memory"), { level: "note" });
});

t.test("37: clocks: skew over 5 s is a warning, half the round trip is not skew, a jump is named", async (t) => {
  const even = { wallPassedMs: 1000, monotonicPassedMs: 1000 };
  const at = (oursMs: number, roundTripMs = 2) => ({ ...even, controlPlane: { theirsMs: 1e12, oursMs, roundTripMs } });
  t.same(levels(clockChecks(at(1e12 + 4000))), { "clock-skew": "ok", "clock-jumps": "ok" });
  t.match(find(clockChecks(at(1e12 - 600_000)), "clock-skew"), { level: "warning", evidence: /10m behind/ });
  t.match(find(clockChecks(at(1e12 + 600_000)), "clock-skew"), { level: "warning", evidence: /10m ahead of/ });
  t.match(find(clockChecks(at(1e12 + 6000, 4000)), "clock-skew"), { level: "ok" }, "a slow answer");
  t.match(find(clockChecks({ ...even, controlPlane: undefined }), "clock-skew"), { level: "note" });
  const back = clockChecks({ controlPlane: undefined, wallPassedMs: -50_000, monotonicPassedMs: 10_000 });
  t.match(find(back, "clock-jumps"), { level: "note", evidence: /set back by 1m/ });
});

t.test("sockets: there, alive, modes, a folder of their own", async (t) => {
  const folder = mkdtempSync(`${tmpdir()}/weightline-doctor-`);
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(`${folder}/live`, resolve));
  t.teardown(() => {
    server.close();
    rmSync(folder, { recursive: true });
  });
  const left = createServer();
  await new Promise<void>((resolve) => left.listen(`${folder}/first`, resolve));
  writeFileSync(`${folder}/plain`, "");
  t.equal(socketFacts(`${folder}/live`).state, "listening");
  t.equal(socketFacts(`${folder}/none`).state, "missing");
  t.equal(socketFacts(`${folder}/plain`).state, "other");
  // A file that outlives its listener, as a killed agent leaves it.
  const { linkSync } = await import("node:fs");
  linkSync(`${folder}/first`, `${folder}/dead`);
  await new Promise((resolve) => left.close(resolve));
  t.equal(socketFacts(`${folder}/dead`).state, "dead");

  const fine = { path: "/run/weightline/agent.sock", state: "listening", mode: 0o140666, folderMode: 0o40755 } as const;
  t.same(levels(socketChecks(fine, fine)), { socket: "ok", "descriptor-socket": "ok", "socket-folder": "ok" });
  for (const [state, words] of [
    ["missing", /is not there/],
    ["other", /is no socket/],
    ["dead", /is dead: nobody listens/],
  ] as const) {
    const checks = socketChecks(fine, { ...fine, state });
    t.match(find(checks, "descriptor-socket"), { level: "error", evidence: words });
    t.ok(checks.every(hasCure));
  }
  t.match(find(socketChecks({ ...fine, mode: 0o140600 }, fine), "socket"), {
    level: "warning",
    evidence: /mode 0600/,
    cure: /chmod 0666/,
  });
  t.match(find(socketChecks({ ...fine, folderMode: 0o40700 }, fine), "socket-folder"), { level: "warning" });
  t.match(find(socketChecks({ ...fine, path: "/tmp/agent.sock" }, fine), "socket-folder"), { level: "note" });
});

t.test("42: peers: both ports, by name; a data port that is closed is an error though the agent answers", async (t) => {
  const fine = { name: "b", address: "h:1", agent: "", dataAddress: "h:2", data: "" };
  t.same(levels(peerChecks([fine], 0)), { peers: "ok", "peers-data": "ok" });
  t.same(levels(peerChecks([], 0)), { peers: "note" });
  const closed = peerChecks([fine, { ...fine, name: "c", data: "ECONNREFUSED" }], 3);
  t.match(find(closed, "peers"), { level: "ok", evidence: /3 more were not asked/ });
  t.match(find(closed, "peers-data"), { level: "error", evidence: /1 of 2.*c at h:2 \(ECONNREFUSED\)/, cure: /6755/ });
  const silent = peerChecks([{ ...fine, agent: "no answer", dataAddress: "" }], 0);
  t.same(levels(silent), { peers: "error" });
  t.match(find(silent, "peers").evidence, /b at h:1 \(no answer\)/);
  const old = peerChecks([{ ...fine, dataAddress: "" }], 0);
  t.match(find(old, "peers-data"), { level: "note", evidence: /do not tell their data port: b/ });
  const many = Array.from({ length: 9 }, (_, i) => ({ ...fine, name: `n${i}`, agent: "x" }));
  t.match(find(peerChecks(many, 0), "peers").evidence, /and 4 more$/);

  const about = { address: "cp:1", announces: "connected", failure: undefined };
  t.match(controlPlaneCheck(about), { level: "ok" });
  t.match(controlPlaneCheck({ ...about, announces: "refused" }), {
    level: "warning",
    evidence: /announces do not arrive: refused/,
  });
  t.match(controlPlaneCheck({ ...about, failure: "no route" }), {
    level: "error",
    evidence: /cp:1.*no route/,
    cure: /--control-plane/,
  });
});

t.test("mover, store, processes", async (t) => {
  const mover = { running: true, pid: 5, restarts: 0, agentSeconds: 7200 };
  t.match(moverCheck(mover), { level: "ok", evidence: /process 5/ });
  t.match(moverCheck({ ...mover, restarts: 1 }), { level: "warning", evidence: /started again 1 time/ });
  t.match(moverCheck({ ...mover, restarts: 9 }), { level: "warning", evidence: /which is often/ });
  t.match(moverCheck({ ...mover, running: false, restarts: 3 }), { level: "error", evidence: /attaches go on/ });

  const store = { path: "/s", foreign: [], damaged: [], newer: [], complete: 1, filling: 2, evicting: 3 };
  t.same(levels(storeChecks(store)), { holdings: "ok", damage: "ok", "foreign-files": "ok", "newer-holdings": "ok" });
  const bad = storeChecks({ ...store, foreign: ["x", "holdings/y"], damaged: ["a"], newer: ["b"] });
  t.same(levels(bad), { holdings: "ok", damage: "warning", "foreign-files": "note", "newer-holdings": "note" });
  t.match(find(bad, "foreign-files").evidence, /2 name\(s\) in \/s.*x, holdings\/y/);

  const seen = { hostPids: true, hostCgroups: true, inKubernetes: true };
  t.match(processCheck(seen), { level: "ok" });
  t.match(processCheck({ ...seen, hostCgroups: false }), { level: "ok", evidence: /relative/ });
  t.match(processCheck({ ...seen, hostPids: false }), { level: "warning", cure: /hostPID: true/ });
  t.match(processCheck({ ...seen, hostPids: false, inKubernetes: false }), { level: "note" });
});
