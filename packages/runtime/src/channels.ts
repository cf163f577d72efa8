// Channels to other programs, without any server.
export { createGrpcChannel, type GrpcChannel, type GrpcChannelOptions } from "./rpc/grpc-client.ts";
export { createLocalClient } from "./rpc/local-client.ts";
export {
  type ChannelTls,
  channelTo,
  checkAuthorities,
  contextOptions,
  type NamedFile,
  readNamedFile,
} from "./security/certificates.ts";
