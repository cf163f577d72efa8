import { readFileSync } from "node:fs";
import { totalmem } from "node:os";

const TMPFS_SHARE = 0.8;
const RAM_SHARE = 0.5;
const CGROUP_SHARE = 0.9;
/** cgroup version 1 says "no limit" with a huge number. */
const UNLIMITED = 2 ** 60;

function readLimit(path: string): number | undefined {
  try {
    const value = Number(readFileSync(path, "utf8").trim());
    return Number.isFinite(value) && value > 0 && value < UNLIMITED ? value : undefined;
  } catch {
    return undefined;
  }
}

/** The least limit on the way from a process's cgroup up to the root, in bytes; undefined when there is none. */
export function cgroupMemoryLimit(cgroupLines: readonly string[]): number | undefined {
  const limits: number[] = [];
  for (const line of cgroupLines) {
    const [, controllers = "", path = ""] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    const isMemory = controllers.split(",").includes("memory");
    if (controllers !== "" && !isMemory) {
      continue;
    }
    const root = isMemory ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
    const file = isMemory ? "memory.limit_in_bytes" : "memory.max";
    for (let folder = path; ; folder = folder.slice(0, folder.lastIndexOf("/"))) {
      const limit = readLimit(`${root}${folder}/${file}`);
      if (limit !== undefined) {
        limits.push(limit);
      }
      if (folder === "" || folder === "/") {
        break;
      }
    }
  }
  return limits.length === 0 ? undefined : Math.min(...limits);
}

/** That of this process. */
export function ownCgroupMemoryLimit(): number | undefined {
  return cgroupMemoryLimit(readFileSync("/proc/self/cgroup", "utf8").trim().split("\n"));
}

/** Bytes for all holdings: what is configured, else the smallest of the shares of tmpfs, RAM and cgroup. */
export function memoryLimit(configured: number, tmpfsBytes: number): number {
  if (configured > 0) {
    return configured;
  }
  const limits = [tmpfsBytes * TMPFS_SHARE, totalmem() * RAM_SHARE];
  const cgroup = ownCgroupMemoryLimit();
  if (cgroup !== undefined) {
    limits.push(cgroup * CGROUP_SHARE);
  }
  return Math.floor(Math.min(...limits));
}
