import { randomBytes } from "node:crypto";
import { readdir, readFile, statfs } from "node:fs/promises";
import { native, type StoreLockHandle, type StoreViewHandle } from "@weightline/rdma-native";
import { makeFolders, WeightlineError } from "@weightline/runtime";
import { writeWholeJson } from "./whole-file.ts";

/** Version of node.json that this agent writes. */
const NODE_FORMAT = 1;
/** statfs(2): magic number of tmpfs. */
const TMPFS_MAGIC = 0x01021994;
/** objects.md: a new agent waits so long for the old mover's end. */
const LOCK_WAIT_MS = 5000;
const HOLDING_ID = /^[0-9a-f]{32}$/;
const STORE_ID = /^[0-9a-f]{32}$/;
/** Far above any clock; epochs stay whole numbers below it. */
const EPOCH_MAX = Number.MAX_SAFE_INTEGER;
const OWN_NAMES = new Set(["lock", "node.json", "node.json.new", "holdings"]);

interface NodeFile {
  format: number;
  min_reader: number;
  node: string;
  last_epoch: number;
  store_id: string;
}

/** The agent's store: locked, its epoch taken. */
export interface StoreFolder {
  readonly path: string;
  readonly lock: StoreLockHandle;
  readonly view: StoreViewHandle;
  /** This start's epoch. */
  epoch(): bigint;
  /** Goes above an epoch that a directory knows. */
  raiseEpoch(above: bigint): Promise<bigint>;
  /** Random, made with the store: it stays when the node's name changes. */
  readonly storeId: string;
  holdingFolder(id: string): string;
  /** Ids of the holdings' folders, and names in the store that are not ours. */
  list(): Promise<{ holdingIds: string[]; foreign: string[] }>;
  /** Bytes of the tmpfs: all and free. */
  space(): Promise<{ totalBytes: number; freeBytes: number }>;
  close(): void;
}

async function checkTmpfs(path: string): Promise<void> {
  const { type } = await statfs(path);
  if (type !== TMPFS_MAGIC) {
    throw new WeightlineError("Refused", `--store ${path} does not lie on tmpfs`, {
      field: "--store",
      value: path,
      limit: "a folder on tmpfs",
      wayOut: "give a folder below /dev/shm, or mount a tmpfs there",
    });
  }
}

/** What the last agent wrote; undefined when there is nothing, or nothing that can be read. Refuses a newer agent's. */
async function readNodeFile(path: string): Promise<NodeFile | undefined> {
  try {
    const json: Partial<NodeFile> | null = JSON.parse(await readFile(path, "utf8"));
    // Before all else: what a newer agent's other fields look like is not known here.
    if (typeof json?.min_reader === "number" && json.min_reader > NODE_FORMAT) {
      throw new WeightlineError(
        "Refused",
        `${path} was written by a newer agent: it needs version ${json.min_reader}, this agent reads ${NODE_FORMAT}`,
        {
          field: "min_reader",
          value: String(json.min_reader),
          limit: String(NODE_FORMAT),
          wayOut: "upgrade this agent, or give another --store",
        },
      );
    }
    const { last_epoch: epoch = -1, store_id: id = "", min_reader: minReader } = json ?? {};
    if (
      Number.isSafeInteger(epoch) &&
      epoch >= 0 &&
      epoch < EPOCH_MAX &&
      typeof id === "string" &&
      STORE_ID.test(id) &&
      typeof minReader === "number"
    ) {
      return json as NodeFile;
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" && !(error instanceof SyntaxError)) {
      throw error;
    }
  }
  return undefined;
}

/**
 * Opens the store: makes the folders, takes the lock (InUse names who has it), raises the epoch to
 * max(last + 1, Unix ms) and writes it down before anybody hears of it.
 */
export async function openStore(path: string, readOnlyMount: string, nodeName: string): Promise<StoreFolder> {
  try {
    makeFolders(`${path}/holdings`);
  } catch (cause) {
    throw new WeightlineError("Refused", `--store ${path} cannot be made: ${(cause as Error).message}`, {
      field: "--store",
      value: path,
      wayOut: "give a folder below /dev/shm, or another tmpfs that this user may write to",
      cause,
    });
  }
  await checkTmpfs(path);
  const lock = await native.lockStore(`${path}/lock`, LOCK_WAIT_MS);
  try {
    const nodePath = `${path}/node.json`;
    const last = await readNodeFile(nodePath);
    const file: NodeFile = {
      format: NODE_FORMAT,
      min_reader: NODE_FORMAT,
      node: nodeName,
      last_epoch: Math.max((last?.last_epoch ?? 0) + 1, Date.now()),
      store_id: last?.store_id ?? randomBytes(16).toString("hex"),
    };
    const save = async () => {
      await writeWholeJson(nodePath, `${JSON.stringify(file)}\n`);
    };
    await save();
    const view = await native.openStoreView(path, readOnlyMount);
    return {
      path,
      lock,
      view,
      storeId: file.store_id,
      epoch: () => BigInt(file.last_epoch),
      async raiseEpoch(above) {
        if (above >= BigInt(EPOCH_MAX) - 1n) {
          throw new WeightlineError("Corrupt", `a directory knows epoch ${above}, which no clock ever gave`, {
            field: "known_epoch",
            value: String(above),
            limit: String(EPOCH_MAX),
            wayOut: "restart the control plane: its directory is damaged",
          });
        }
        file.last_epoch = Math.max(file.last_epoch, Number(above) + 1);
        await save();
        return BigInt(file.last_epoch);
      },
      holdingFolder: (id) => `${path}/holdings/${id}`,
      async list() {
        const inside = await readdir(`${path}/holdings`, { withFileTypes: true });
        const beside = (await readdir(path)).filter((name) => !OWN_NAMES.has(name));
        // A file or a link of such a name was not made by an agent: what it points at is not ours to delete.
        const [ours, others] = [true, false].map((own) =>
          inside
            .filter((entry) => (entry.isDirectory() && HOLDING_ID.test(entry.name)) === own)
            .map(({ name }) => name),
        );
        return { holdingIds: ours ?? [], foreign: [...beside, ...(others ?? []).map((name) => `holdings/${name}`)] };
      },
      async space() {
        const { bsize, blocks, bavail } = await statfs(path);
        return { totalBytes: bsize * blocks, freeBytes: bsize * bavail };
      },
      close() {
        native.closeStoreView(view);
        native.unlockStore(lock);
      },
    };
  } catch (error) {
    native.unlockStore(lock);
    throw error;
  }
}
