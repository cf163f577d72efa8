import type { SourceIdentity } from "@weightline/proto/p2p";

const LARGEST = 2n ** 64n - 1n;

/** contract.md: `training_step`, else `version`; undefined when that is no whole number of 64 bits. */
export function trainingStep(identity: SourceIdentity): bigint | undefined {
  const { extraParameters } = identity;
  const text = ownValue(extraParameters, "training_step") ?? ownValue(extraParameters, "version");
  if (text === undefined || !/^\d{1,20}$/.test(text)) {
    return undefined;
  }
  const step = BigInt(text);
  return step <= LARGEST ? step : undefined;
}

function ownValue(parameters: Readonly<Record<string, string>>, key: string): string | undefined {
  return Object.hasOwn(parameters, key) ? parameters[key] : undefined;
}
