import { create } from "@bufbuild/protobuf";
import { type SourceIdentity, SourceIdentitySchema } from "./gen/model_express/p2p_pb.ts";

/** Our own parameter in identities: it keeps stock GPU clients away from memory that they cannot READ. */
export const KIND_PARAMETER = "weightline.kind";

/** Every parameter of ours begins so. */
export const OWN_PARAMETER_PREFIX = "weightline.";

/**
 * The identity under which `load` publishes a model's files and under which `acquire(model_name, rank, revision)`, `pull`
 * and `evict` look for them: everything but name, revision and kind is empty.
 */
export function filesIdentity(modelName: string, revision = ""): SourceIdentity {
  return create(SourceIdentitySchema, { modelName, revision, extraParameters: { [KIND_PARAMETER]: "files" } });
}

/** True for an identity that only Weightline's own clients ask for. */
export function isOwnIdentity(identity: SourceIdentity): boolean {
  return Object.keys(identity.extraParameters).some((key) => key.toLowerCase().startsWith(OWN_PARAMETER_PREFIX));
}

/** True for an identity of kind `files`: only what `load` reads has one. */
export function isFilesIdentity(identity: SourceIdentity): boolean {
  return Object.entries(identity.extraParameters).some(
    ([key, value]) => key.toLowerCase() === KIND_PARAMETER && value.toLowerCase() === "files",
  );
}
