import { create } from "@bufbuild/protobuf";
import { type SourceIdentity, SourceIdentitySchema } from "@weightline/proto/p2p";

/** The identity that the rules are tried with. */
export function identityOf(change: object = {}): SourceIdentity {
  return create(SourceIdentitySchema, {
    modelName: "deepseek-ai/DeepSeek-V3",
    mxVersion: "0.7.0",
    tensorParallelSize: 8,
    ...change,
  });
}
