const UNITS: Readonly<Record<string, bigint>> = {
  "": 1n,
  B: 1n,
  K: 1n << 10n,
  M: 1n << 20n,
  G: 1n << 30n,
  T: 1n << 40n,
  KIB: 1n << 10n,
  MIB: 1n << 20n,
  GIB: 1n << 30n,
  TIB: 1n << 40n,
  KB: 1_000n,
  MB: 1_000_000n,
  GB: 1_000_000_000n,
  TB: 1_000_000_000_000n,
};

const SHOWN: ReadonlyArray<readonly [string, number]> = [
  ["TiB", 2 ** 40],
  ["GiB", 2 ** 30],
  ["MiB", 2 ** 20],
  ["KiB", 2 ** 10],
];

/** Bytes of "64GiB", "1.5G", "100MB", "4096"; K, M, G and T count in 1024s as KiB do. Undefined for anything else and above 2^53. */
export function parseByteSize(text: string): number | undefined {
  const match = /^(\d+)(?:\.(\d{1,3}))?\s*([a-z]*)$/i.exec(text.trim());
  const unit = UNITS[(match?.[3] ?? "").toUpperCase()];
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
