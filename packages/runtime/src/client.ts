// For programs that only call: without servers, logging and metrics they start in half the time.
export { formatByteSize, parseByteSize } from "./byte-size.ts";
export { missingValue } from "./configuration/configuration.ts";
export { readYamlFile } from "./configuration/yaml-file.ts";
export { formatDuration } from "./duration.ts";
export {
  describeError,
  ERROR_CODES,
  type ErrorCode,
  type ErrorFacts,
  isErrorCode,
  toWeightlineError,
  WeightlineError,
} from "./error.ts";
export { formatAddress, type NetworkAddress, parseAddress, parseAddresses } from "./network-address.ts";
export { fromRpcError } from "./rpc/rpc-error.ts";
