import { fromBinary } from "@bufbuild/protobuf";
import { computeSourceId, identityToJson } from "@weightline/proto";
import { type SourceIdentity, SourceIdentitySchema } from "@weightline/proto/p2p";
import { checkMessageValues } from "@weightline/runtime";
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

export function createIdentityReader(): IdentityReader {
  /** By their encoded bytes, see byteString; in the order of their last use. */
  const known = new Map<string, KnownIdentity>();
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
      const entry = known.get(key) ?? decode(encoded);
      known.delete(key);
      known.set(key, entry);
      const oldest = known.keys().next().value;
      if (known.size > IDENTITIES_MAX && oldest !== undefined) {
        known.delete(oldest);
      }
      return entry;
    },
  };
}
