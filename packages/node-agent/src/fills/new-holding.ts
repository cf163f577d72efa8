import type { ScanResult } from "@weightline/rdma-native";
import type { Evictor } from "../holdings/evictor.ts";
import { chargeOf, type Holding } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { MemoryAccount } from "../holdings/memory-account.ts";
import { readLayoutHeader } from "../layout-reader.ts";
import type { HoldingSource, NamedIdentity } from "../store/holding-record.ts";
import type { StoreFolder } from "../store/store-folder.ts";

export interface NewHoldingOptions {
  store: StoreFolder;
  registry: HoldingRegistry;
  account: MemoryAccount;
}

/**
 * Makes a holding of a folder that has its layout: this node is its origin. The limit is asked before the name is visible:
 * what does not fit (ResourceExhausted) was never there.
 */
export async function beginHolding(
  { store, registry, account }: NewHoldingOptions,
  id: string,
  scanned: ScanResult,
  named: NamedIdentity,
  source: HoldingSource,
): Promise<Holding> {
  const layout = await readLayoutHeader(store.holdingFolder(id));
  const record = {
    identities: [named],
    state: "filling" as const,
    source,
    origin: id,
    layoutDigest: Buffer.from(scanned.layoutDigest).toString("hex"),
    objectDigest: "",
    createdMs: Date.now(),
  };
  const draft = registry.adopt(id, { ...record, identities: [] });
  try {
    await account.reserve(
      draft,
      chargeOf(layout.totalBytes, layout.layoutBytes, layout.chunkBytes, layout.segments.length),
    );
  } catch (error) {
    registry.remove(id);
    throw error;
  }
  const holding = await registry.add(id, record, draft.charge);
  holding.layout = layout;
  registry.changed();
  return holding;
}

/**
 * When this node holds the same object already, that holding takes the new one's name and the new one goes; undefined
 * otherwise.
 */
export async function mergeWithTwin(
  registry: HoldingRegistry,
  evictor: Evictor,
  holding: Holding,
  named: NamedIdentity,
  objectDigest: string,
): Promise<Holding | undefined> {
  const [twin] = registry.withDigest(objectDigest);
  if (twin !== undefined) {
    await registry.addIdentity(twin, named);
    await evictor.evict(holding, 0);
  }
  return twin;
}
