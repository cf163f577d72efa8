import { create, toBinary } from "@bufbuild/protobuf";
import { type SourceIdentity, SourceInstanceRefSchema } from "@weightline/proto/p2p";
import { trainingStep } from "./training-step.ts";
import { byteString, varintBytes, writeVarint } from "./wire.ts";

/**
 * A SourceInstanceRef, encoded but for what changes with every heartbeat: the fields before updated_at (6), those between
 * it and source_load (10). Protobuf writes fields by their number, so the whole is what an encode of the message gives.
 * Each is kept as a string of one byte a character: there are many, and a small buffer costs more than its bytes.
 */
export interface EncodedInstance {
  head: string;
  tail: string;
}

const INSTANCES_TAG = (1 << 3) | 2;
const UPDATED_AT_TAG = (6 << 3) | 0;
const SOURCE_LOAD_TAG = (10 << 3) | 5;
const SOURCE_LOAD_BYTES = 5;

export function encodeInstance(
  source: { sourceId: string; identity: SourceIdentity },
  worker: { workerId: string; rank: number; accelerator: string; topology: Readonly<Record<string, string>> },
): EncodedInstance {
  const step = trainingStep(source.identity);
  const head = create(SourceInstanceRefSchema, {
    mxSourceId: source.sourceId,
    workerId: worker.workerId,
    modelName: source.identity.modelName,
    workerRank: worker.rank,
    accelerator: worker.accelerator,
  });
  const tail = create(SourceInstanceRefSchema, {
    topology: worker.topology,
    ...(step === undefined ? {} : { trainingStep: step }),
  });
  return {
    head: byteString(toBinary(SourceInstanceRefSchema, head)),
    tail: byteString(toBinary(SourceInstanceRefSchema, tail)),
  };
}

/** One entry of a reply: an instance with its time of update (Unix ms) and load. */
export interface ListedInstance {
  workerId: string;
  encoded: EncodedInstance;
  updatedAtMs: number;
  load: number | undefined;
}

function instanceBytes({ encoded, updatedAtMs, load }: ListedInstance): number {
  const time = updatedAtMs > 0 ? 1 + varintBytes(updatedAtMs) : 0;
  return encoded.head.length + time + encoded.tail.length + (load === undefined ? 0 : SOURCE_LOAD_BYTES);
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
    const { encoded, updatedAtMs, load } = instance;
    reply[at++] = INSTANCES_TAG;
    at = writeVarint(reply, at, instanceBytes(instance));
    at += reply.write(encoded.head, at, "latin1");
    if (updatedAtMs > 0) {
      reply[at++] = UPDATED_AT_TAG;
      at = writeVarint(reply, at, updatedAtMs);
    }
    at += encoded.tail === "" ? 0 : reply.write(encoded.tail, at, "latin1");
    if (load !== undefined) {
      reply[at++] = SOURCE_LOAD_TAG;
      at = reply.writeFloatLE(load, at);
    }
  }
  return reply;
}
