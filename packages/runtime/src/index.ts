export { ActiveList, type Listed } from "./active-list.ts";
export { BOUNDED_LINES_PER_SECOND, type BoundedLog, createBoundedLog, type EventFields } from "./bounded-log.ts";
export { formatByteSize, parseByteSize } from "./byte-size.ts";
export { type ConfigGeneratorOptions, runConfigGenerator } from "./configuration/config-generator.ts";
export {
  COMMON_FLAGS,
  type Configuration,
  missingValue,
  nearNames,
  readConfiguration,
  tableEntries,
} from "./configuration/configuration.ts";
export { effectiveText, helpText, referenceRows, sampleText } from "./configuration/configuration-text.ts";
export { schemaText } from "./configuration/json-schema.ts";
export { acceptsNone, type Fault, type Option, type OptionValues, option } from "./configuration/option.ts";
export * as optionTypes from "./configuration/option-types.ts";
export { configureProgram, type ProgramDescription } from "./configuration/program-configuration.ts";
export { readYamlFile } from "./configuration/yaml-file.ts";
export { formatDuration, parseDuration } from "./duration.ts";
export {
  describeError,
  ERROR_CODES,
  type ErrorCode,
  type ErrorFacts,
  isErrorCode,
  toWeightlineError,
  WeightlineError,
} from "./error.ts";
export { makeFolders } from "./folders.ts";
export { createLifecycle, type Lifecycle, type Part, type RunningProgram, runProgram } from "./lifecycle.ts";
export { checkLogFile } from "./log-file.ts";
export { createLogger, LOG_FORMATS, LOG_LEVELS, type Logger, type LoggingOptions } from "./logging.ts";
export { createLoopRation, type LoopRation } from "./loop-ration.ts";
export { addBuildInfo, COLLECT_TIMEOUT_MS, createMetrics, type Metrics } from "./metrics.ts";
export {
  checkAddresses,
  formatAddress,
  isLoopback,
  isWildcard,
  type NetworkAddress,
  parseAddress,
  parseAddresses,
} from "./network-address.ts";
export { createOperationsServer, type OperationsServer, type OperationsServerOptions } from "./operations-server.ts";
export { OrderedList, Place } from "./ordered-list.ts";
export { type CallFailure, createFailureLog } from "./rpc/call-failure.ts";
export type { ServerSecurity } from "./rpc/connection-intake.ts";
export { createGrpcChannel, type GrpcChannel, type GrpcChannelOptions } from "./rpc/grpc-client.ts";
export { createGrpcServer, type GrpcServer, type GrpcServerOptions } from "./rpc/grpc-server.ts";
export { createHealthStatus, type HealthStatus } from "./rpc/health-service.ts";
export { createLimitRecord, type LimitRecord } from "./rpc/limit-record.ts";
export { refuseLocalCall, unaryAnswer } from "./rpc/local-answers.ts";
export { createLocalClient } from "./rpc/local-client.ts";
export { type LocalRpcOptions, mountLocalRpc } from "./rpc/local-rpc.ts";
export { checkMessageValues } from "./rpc/message-values.ts";
export { withReflection } from "./rpc/reflection-service.ts";
export { fromRpcError, malformedRequest, toConnectError } from "./rpc/rpc-error.ts";
export {
  COMPRESSED_MESSAGE_MAX_BYTES,
  HEADER_BLOCK_MAX_BYTES,
  HEADER_PAIRS_MAX_COUNT,
  type LimitReason,
  MAX_MESSAGE_BYTES,
  MESSAGE_VALUES_MAX_COUNT,
  SERVER_LIMITS,
  type ServerLimits,
} from "./rpc/server-limits.ts";
export { route, type ServiceRoute } from "./rpc/service-route.ts";
export { EncodedMessage, routeInWireForms, type WireForm } from "./rpc/wire-forms.ts";
export {
  type Authorize,
  CALLER,
  type Caller,
  type CallerKind,
  type CheckToken,
  checkSpeaksFor,
  createAccess,
  describeCaller,
} from "./security/access.ts";
export { type CertificateFiles, createCertificateFiles } from "./security/certificate-files.ts";
export { observeCertificate } from "./security/certificate-metric.ts";
export { type ChannelTls, channelTo, type NamedFile, readNamedFile } from "./security/certificates.ts";
export { identityUri, isCertifiableName, type PeerIdentity } from "./security/peer-identity.ts";
export { checkSecurityFiles, openCertificates, SECURITY_OPTIONS } from "./security/security-options.ts";
export { plainTlsWords } from "./security/tls-words.ts";
