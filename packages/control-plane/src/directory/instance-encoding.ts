import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type SourceInstanceRef, SourceInstanceRefSchema } from "@weightline/proto/p2p";
import { varintBytes, writeVarint } from "./wire.ts";
import type { WorkerTable } from "./worker-table.ts";

const INSTANCES_TAG = (1 << 3) | 2;
const UPDATED_AT_TAG = (6 << 3) | 0;
const SOURCE_LOAD_TAG = (10 << 3) | 5;
const SOURCE_LOAD_BYTES = 5;

/** What all workers of a source have in their instances. */
export interface InstanceSource {
  sourceId: string;
  modelName: string;
  trainingStep: bigint | undefined;
}

/**
 * A SourceInstanceRef, encoded but for what changes with every heartbeat: the fields before updated_at (6), those between
 * it and source_load (10). Protobuf writes fields by their number, so the whole is what an encode of the message gives.
 */
export function encodeInstance(
  { sourceId, modelName, trainingStep }: InstanceSource,
  worker: { workerId: string; rank: number; accelerator: string; topology: Readonly<Record<string, string>> },
): { head: Uint8Array; tail: Uint8Array } {
  const head = create(SourceInstanceRefSchema, {
    mxSourceId: sourceId,
    workerId: worker.workerId,
    modelName,
    workerRank: worker.rank,
    accelerator: worker.accelerator,
  });
  const tail = create(SourceInstanceRefSchema, {
    topology: worker.topology,
    ...(trainingStep === undefined ? {} : { trainingStep }),
  });
  return { head: toBinary(SourceInstanceRefSchema, head), tail: toBinary(SourceInstanceRefSchema, tail) };
}

/** Head and tail, one behind the other, read back: what heartbeats change is not in it. */
export function decodeInstance(bytes: Uint8Array): SourceInstanceRef {
  return fromBinary(SourceInstanceRefSchema, bytes);
}

/** One entry of a reply. */
export interface ListedInstance {
  table: WorkerTable;
  row: number;
}

function instanceBytes({ table, row }: ListedInstance): number {
  const updatedAtMs = table.updatedAtMs(row);
  const time = updatedAtMs > 0 ? 1 + varintBytes(updatedAtMs) : 0;
  return table.headBytes(row) + time + table.tailBytes(row) + (table.load(row) === undefined ? 0 : SOURCE_LOAD_BYTES);
}

/** The bytes of a ListSourcesResponse with these instances, as an encode of the single messages gives them. */
export function encodeInstances(instances: readonly ListedInstance[]): Uint8Array {
  let total = 0;
  for (const instance of instances) {
    const bytes = instanceBytes(instance);
    total += 1 + varintBytes(bytes) + bytes;
  }
  const reply = Buffer.allocUnsafe(total);
  let at = 0;
  for (const instance of instances) {
    const { table, row } = instance;
    reply[at++] = INSTANCES_TAG;
    at = writeVarint(reply, at, instanceBytes(instance));
    at = table.copyHead(row, reply, at);
    const updatedAtMs = table.updatedAtMs(row);
    if (updatedAtMs > 0) {
      reply[at++] = UPDATED_AT_TAG;
      at = writeVarint(reply, at, updatedAtMs);
    }
    at = table.copyTail(row, reply, at);
    const load = table.load(row);
    if (load !== undefined) {
      reply[at++] = SOURCE_LOAD_TAG;
      at = reply.writeFloatLE(load, at);
    }
  }
  return reply;
}
