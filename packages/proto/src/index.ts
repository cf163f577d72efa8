export { enumName } from "./enum-name.ts";
export {
  filesIdentity,
  isFilesIdentity,
  isOwnIdentity,
  KIND_PARAMETER,
  OWN_PARAMETER_PREFIX,
} from "./files-identity.ts";
export { identityFromJson, identityToJson } from "./identity-json.ts";
export { canonicalIdentity, compareUtf8, computeSourceId, type IdentityFields } from "./source-id.ts";
