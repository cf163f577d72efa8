import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, rmdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Where cgroup version 2 is mounted: alone, or beside version 1. */
export const CGROUP2 = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].find((path) => existsSync(`${path}/cgroup.procs`));

/** Cgroups of one test run, below a folder of its own. Needs root. */
export interface CgroupTree {
  /** Path of the folder below which all lie, from the hierarchy's top. */
  readonly top: string;
  /** Makes a cgroup; gives its path from the hierarchy's top. */
  make(path: string): string;
  /** A pod's container as kubelet makes it with systemd's names. */
  container(podUid: string, name: string): string;
  /** The wrapper that starts a program in it. */
  wrapper(cgroup: string): readonly string[];
  /** File to which a process writes its id to be in it. */
  processes(cgroup: string): string;
  remove(): Promise<void>;
}

function removeTree(path: string): void {
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    if (entry.isDirectory()) {
      removeTree(`${path}/${entry.name}`);
    }
  }
  rmdirSync(path);
}

export function createCgroupTree(): CgroupTree {
  const top = `/weightline-${randomBytes(4).toString("hex")}`;
  mkdirSync(`${CGROUP2}${top}`);
  const make = (path: string) => {
    mkdirSync(`${CGROUP2}${top}/${path}`, { recursive: true });
    return `${top}/${path}`;
  };
  const processes = (cgroup: string) => `${CGROUP2}${cgroup}/cgroup.procs`;
  return {
    top,
    make,
    container: (podUid, name) =>
      make(
        `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${podUid.replaceAll("-", "_")}.slice/cri-containerd-${name}.scope`,
      ),
    processes,
    wrapper: (cgroup) => ["sh", "-c", `echo 0 >${processes(cgroup)} && exec "$@"`, "sh"],
    async remove() {
      // A cgroup goes when its last process has been reaped.
      for (let i = 0; ; i++) {
        try {
          removeTree(`${CGROUP2}${top}`);
          return;
        } catch (error) {
          if (i === 100) {
            throw error;
          }
          await sleep(50);
        }
      }
    },
  };
}
