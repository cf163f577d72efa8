import { fromBinary } from "@bufbuild/protobuf";
import { computeSourceId, identityToJson } from "@weightline/proto";
import { type SourceIdentity, SourceIdentitySchema } from "@weightline/proto/p2p";
import { checkMessageValues, OrderedList, Place } from "@weightline/runtime";
import { byteString } from "../directory/wire.ts";

/** A decoded SourceIdentity with what follows from it. Shared by all who publish it: nobody changes it. */
export interface KnownIdentity {
  readonly identity: SourceIdentity;
  readonly sourceId: string;
  /** What a directory keeps of it, in bytes. */
  readonly recordBytes: number;
}

/** Decodes identities, those that come again only once. */
export interface IdentityReader {
  /** Throws what protobuf throws for bytes that are none, and ResourceExhausted for too many values. */
  read(encoded: Uint8Array): KnownIdentity;
}

/** Identities that are remembered: many times what a cluster serves. */
const IDENTITIES_MAX = 1000;
/** A longer one is decoded each time, in bytes. */
const REMEMBERED_MAX_BYTES = 4096;

class Remembered {
  readonly key: string;
  readonly known: KnownIdentity;
  readonly place = new Place<Remembered>(this);

  constructor(key: string, known: KnownIdentity) {
    this.key = key;
    this.known = known;
  }
}

export function createIdentityReader(): IdentityReader {
  /** By their encoded bytes, see byteString. */
  const remembered = new Map<string, Remembered>();
  /** In the order of their last use. */
  const used = new OrderedList<Remembered>();
  const decode = (encoded: Uint8Array): KnownIdentity => {
    checkMessageValues(SourceIdentitySchema, encoded);
    const identity = fromBinary(SourceIdentitySchema, encoded, { readUnknownFields: false });
    const recordBytes = Buffer.byteLength(JSON.stringify(identityToJson(identity)));
    return { identity, sourceId: computeSourceId(identity), recordBytes };
  };
  return {
    read(encoded) {
      if (encoded.length > REMEMBERED_MAX_BYTES) {
        return decode(encoded);
      }
      const key = byteString(encoded);
      let entry = remembered.get(key);
      if (entry === undefined) {
        entry = new Remembered(key, decode(encoded));
        remembered.set(key, entry);
      }
      used.add(entry.place);
      const oldest = used.first;
      if (remembered.size > IDENTITIES_MAX && oldest !== undefined) {
        used.delete(oldest.place);
        remembered.delete(oldest.key);
      }
      return entry.known;
    },
  };
}
