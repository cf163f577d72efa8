import { toBinary } from "@bufbuild/protobuf";
import { filesIdentity } from "@weightline/proto";
import type { Wanted as WantedMessage } from "@weightline/proto/local";
import { type SourceIdentity, SourceIdentitySchema } from "@weightline/proto/p2p";
import { WeightlineError } from "@weightline/runtime";
import { type Wanted, wantedFrom } from "../fills/wanted.ts";
import type { NamedIdentity } from "../store/holding-record.ts";
import { IDENTITY_MAX_BYTES, NAME_MAX_BYTES } from "./limits.ts";

const DEFAULT_TIMEOUT_S = 300;
const TIMEOUT_MAX_S = 86_400;

/** What a request's words mean. Throws InvalidArgument naming the field. */
export function readWanted(message: WantedMessage | undefined): Wanted {
  const missing = () =>
    new WeightlineError("InvalidArgument", "wanted.model.model_name is required", {
      field: "wanted",
      limit: "a model name, an identity or a source id",
      wayOut: "name the model",
    });
  const name = message?.name;
  const rank = message?.rank ?? 0;
  switch (name?.case) {
    case "model": {
      checkName("model_name", name.value.modelName);
      checkName("revision", name.value.revision);
      if (name.value.modelName === "") {
        throw missing();
      }
      return wantedFrom({ identity: filesIdentity(name.value.modelName, name.value.revision), rank });
    }
    case "identity":
      return wantedFrom(readIdentity(name.value, rank));
    case "sourceId":
      if (!/^[0-9a-f]{16}$/.test(name.value)) {
        throw new WeightlineError("InvalidArgument", `source id "${name.value}" is not 16 lowercase hex digits`, {
          field: "source_id",
          value: name.value,
          limit: "16 lowercase hex digits",
        });
      }
      return {
        sourceId: name.value,
        rank,
        named: undefined,
        modelName: name.value,
        label: `source ${name.value}, rank ${rank}`,
      };
    default:
      throw missing();
  }
}

/** An identity and rank that can be held. Throws InvalidArgument naming the field. */
export function readIdentity(identity: SourceIdentity | undefined, rank: number): NamedIdentity {
  if (identity === undefined || identity.modelName === "") {
    throw new WeightlineError("InvalidArgument", "identity.model_name is required", { field: "identity.model_name" });
  }
  checkName("identity.model_name", identity.modelName);
  checkName("identity.revision", identity.revision);
  checkIdentity(identity);
  return { identity, rank };
}

/** What waits keeps its identity in memory, and what is held announces it. */
function checkIdentity(identity: SourceIdentity): void {
  const { length } = toBinary(SourceIdentitySchema, identity);
  if (length > IDENTITY_MAX_BYTES) {
    throw new WeightlineError(
      "InvalidArgument",
      `identity has ${length} bytes; at most ${IDENTITY_MAX_BYTES} are taken`,
      {
        field: "identity",
        value: `${length} bytes`,
        limit: `${IDENTITY_MAX_BYTES} bytes`,
        wayOut: "give shorter extra_parameters",
      },
    );
  }
}

/** Throws InvalidArgument for a name that is too long. */
export function checkName(field: string, value: string): void {
  const bytes = Buffer.byteLength(value);
  if (bytes > NAME_MAX_BYTES) {
    throw new WeightlineError("InvalidArgument", `${field} has ${bytes} bytes; at most ${NAME_MAX_BYTES} are taken`, {
      field,
      value: `${bytes} bytes`,
      limit: `${NAME_MAX_BYTES} bytes`,
    });
  }
}

/** Ms of a request's seconds; 0 means the default. Throws InvalidArgument naming the field. */
export function readTimeout(field: string, seconds: number): number {
  if (!Number.isFinite(seconds) || seconds < 0 || seconds > TIMEOUT_MAX_S) {
    throw new WeightlineError("InvalidArgument", `${field} ${seconds} is not within 0 and ${TIMEOUT_MAX_S}`, {
      field,
      value: String(seconds),
      limit: `0 to ${TIMEOUT_MAX_S}`,
    });
  }
  // Whole: a timer takes no other.
  return Math.ceil((seconds === 0 ? DEFAULT_TIMEOUT_S : seconds) * 1000);
}
