import { mkdirSync, writeFileSync } from "node:fs";
import { CGROUP2 } from "./cgroup.ts";
import { ROOT, type RunningProgram, runCommand, startCommand } from "./program.ts";

export interface ContainerOptions {
  /** Folder of the test for the bundle and crun's state. */
  folder: string;
  /** Unique on this machine. */
  id: string;
  /** From the hierarchy's top. */
  cgroup: string;
  /** The agent's socket folder, seen as /run/weightline. */
  sockets: string;
  command: readonly string[];
  uid?: number;
}

/** A pod-like container that runs: own pid, mount, cgroup, ipc and uts namespaces, no capability, read-only root. */
export interface Container {
  readonly program: RunningProgram;
  /** Kills all of it. */
  kill(): Promise<void>;
}

/** crun knows version 2 alone: beside version 1 it gets a mount namespace in which it is alone. */
function crun(parameters: readonly string[]): string[] {
  const command = ["crun", "--cgroup-manager=cgroupfs", ...parameters];
  if (CGROUP2 === "/sys/fs/cgroup") {
    return command;
  }
  return ["unshare", "--mount", "sh", "-c", 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"', "sh", ...command];
}

/** Starts one with the host's Python, our client and the tests' raw client in it. Needs root and crun. */
export function startContainer(options: ContainerOptions): Container {
  const bundle = `${options.folder}/${options.id}`;
  const state = `${options.folder}/crun`;
  for (const path of ["usr", "lib", "lib64", "bin", "proc", "dev", "sys", "client", "support", "run/weightline"]) {
    mkdirSync(`${bundle}/rootfs/${path}`, { recursive: true });
  }
  const bind = (destination: string, source = destination) => ({
    destination,
    source,
    type: "bind",
    options: ["rbind", "ro"],
  });
  const uid = options.uid ?? 0;
  writeFileSync(
    `${bundle}/config.json`,
    JSON.stringify({
      ociVersion: "1.0.0",
      process: {
        user: { uid, gid: uid },
        args: options.command,
        env: ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONPATH=/client:/support", "PYTHONDONTWRITEBYTECODE=1"],
        cwd: "/",
        noNewPrivileges: true,
        capabilities: { bounding: [], effective: [], permitted: [] },
      },
      root: { path: "rootfs", readonly: true },
      mounts: [
        { destination: "/proc", type: "proc", source: "proc" },
        ...["/usr", "/lib", "/lib64", "/bin"].map((path) => bind(path)),
        bind("/client", `${ROOT}python/weightline`),
        bind("/support", `${ROOT}test/support`),
        bind("/run/weightline", options.sockets),
      ],
      linux: {
        cgroupsPath: options.cgroup,
        namespaces: ["pid", "mount", "ipc", "uts", "cgroup"].map((type) => ({ type })),
      },
    }),
  );
  const program = startCommand(crun(["--root", state, "run", "--bundle", bundle, options.id]));
  return {
    program,
    async kill() {
      await runCommand(crun(["--root", state, "kill", options.id, "KILL"]));
      await program.exited;
    },
  };
}
