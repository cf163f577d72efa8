// A descriptor server in a process of its own, driven over Node's channel: `node descriptor-program.ts STORE MOUNT SOCKET`.
import { closeSync, openSync, readdirSync } from "node:fs";
import { type DescriptorGrant, native } from "@weightline/rdma-native";

/** What the test asks of the program; each is answered by a {@link ProgramAnswer}. */
export type ProgramRequest =
  | { kind: "grant"; grant: DescriptorGrant }
  | { kind: "count" }
  | { kind: "exhaust" }
  | { kind: "relax" };

/** `level` comes once, at the start. */
export interface ProgramAnswer {
  level?: string;
  /** Open descriptors. */
  count: number;
  cpuMs: number;
  refusals: string[];
}

const [store = "", mount = "", socket = ""] = process.argv.slice(2);
const refusals: string[] = [];
const taken: number[] = [];

function takeAll(): void {
  try {
    while (true) {
      taken.push(openSync("/dev/null", "r"));
    }
  } catch {
    // None is left.
  }
}

function answer(more: { level?: string } = {}): void {
  const { user, system } = process.cpuUsage();
  // Reading the folder takes one itself.
  const count = taken.length > 0 ? taken.length : readdirSync("/proc/self/fd").length - 1;
  process.send?.({ count, cpuMs: (user + system) / 1000, refusals, ...more } satisfies ProgramAnswer);
}

const view = await native.openStoreView(store, mount);
const server = native.createDescriptorServer(socket, view, ({ kind, reason }) => {
  if (kind === "refused") {
    refusals.push(reason);
  }
});
process.on("disconnect", () => process.exit(0));
process.on("message", (request: ProgramRequest) => {
  if (request.kind === "grant") {
    native.grantDescriptors(server, request.grant);
  } else if (request.kind === "exhaust") {
    takeAll();
  } else if (request.kind === "relax") {
    for (const descriptor of taken.splice(0)) {
      closeSync(descriptor);
    }
  }
  answer();
});
answer({ level: native.storeViewLevel(view) });
