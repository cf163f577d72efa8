/** Powers of 1024 and of 1000, by the letter of the unit. */
const PREFIXES = ["k", "M", "G", "T", "P"] as const;

/** Kubernetes' letters, as it writes them: a lower-case `m` is a thousandth there, and never meant. */
const QUANTITIES = new Map<string, bigint>([
  ["", 1n],
  ["K", 1000n],
  ...PREFIXES.flatMap(
    (letter, i): Array<[string, bigint]> => [
      [letter, 1000n ** BigInt(i + 1)],
      [`${letter.toUpperCase()}i`, 1024n ** BigInt(i + 1)],
    ],
  ),
]);

/** With a B, in any case: "64GiB", "100MB", "1gib". */
const WITH_B = new Map<string, bigint>([
  ["B", 1n],
  ...PREFIXES.flatMap(
    (letter, i): Array<[string, bigint]> => [
      [`${letter.toUpperCase()}B`, 1000n ** BigInt(i + 1)],
      [`${letter.toUpperCase()}IB`, 1024n ** BigInt(i + 1)],
    ],
  ),
]);

const SHOWN: ReadonlyArray<readonly [string, number]> = [
  ["TiB", 2 ** 40],
  ["GiB", 2 ** 30],
  ["MiB", 2 ** 20],
  ["KiB", 2 ** 10],
];

/**
 * Bytes of "64Gi" or "64GiB" (1024s), "64G" or "64GB" (1000s), "1.5M", "4096". Undefined for anything else and above 2^53.
 */
export function parseByteSize(text: string): number | undefined {
  const match = /^(\d+)(?:\.(\d{1,3}))?\s*([a-z]*)$/i.exec(text.trim());
  const suffix = match?.[3] ?? "";
  const unit = QUANTITIES.get(suffix) ?? WITH_B.get(suffix.toUpperCase());
  if (match === null || unit === undefined) {
    return undefined;
  }
  const thousandths = BigInt(match[1] ?? "0") * 1000n + BigInt((match[2] ?? "").padEnd(3, "0"));
  const bytes = (thousandths * unit) / 1000n;
  return bytes > BigInt(Number.MAX_SAFE_INTEGER) ? undefined : Number(bytes);
}

/** "86.7 MiB": at most one digit after the point. */
export function formatByteSize(bytes: number | bigint): string {
  const value = Number(bytes);
  for (const [unit, size] of SHOWN) {
    if (value >= size) {
      return `${(value / size).toFixed(1)} ${unit}`;
    }
  }
  return `${value} B`;
}
