import { readdirSync, readFileSync } from "node:fs";

const BITS_PER_BYTE = 8;
const UNITS: Readonly<Record<string, number>> = { k: 1e3, m: 1e6, g: 1e9, t: 1e12, "": 1 };

/** Option type: "100Gbit" as bytes per second; 0 is "find out". */
export const linkRate = {
  allowed: "a rate like 100Gbit or 800Mbit",
  parse(value: string): number | undefined {
    if (value.trim() === "0") {
      return 0;
    }
    const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?)bit(?:\/s)?$/i.exec(value.trim());
    const unit = UNITS[(match?.[2] ?? "").toLowerCase()];
    return match === null || unit === undefined ? undefined : (Number(match[1]) * unit) / BITS_PER_BYTE;
  },
  fromYaml: (value: unknown): number | undefined =>
    value === 0 ? 0 : typeof value === "string" ? linkRate.parse(value) : undefined,
  format: (value: number): string => (value === 0 ? "0" : `${(value * BITS_PER_BYTE) / 1e6}Mbit`),
  schema: {
    anyOf: [{ const: 0 }, { type: "string", pattern: "^\\s*\\d+(\\.\\d+)?\\s*[kKmMgGtT]?[bB][iI][tT](/s)?\\s*$" }],
  },
};

const INTERFACES = "/sys/class/net";

/** Bytes per second of the fastest interface that says its speed, or 0. Virtual interfaces say none, or -1. */
export function fastestInterface(): number {
  let best = 0;
  try {
    for (const name of readdirSync(INTERFACES)) {
      try {
        const megabits = Number(readFileSync(`${INTERFACES}/${name}/speed`, "utf8"));
        best = Math.max(best, (megabits * 1e6) / BITS_PER_BYTE);
      } catch {
        // An interface that is down answers with an error.
      }
    }
  } catch {
    return 0;
  }
  return best;
}

/** The rate that transfers are measured against. */
export interface LinkRate {
  /** Bytes per second; 0 while nothing is known. */
  current(): number;
  /** A transfer's rate, which counts where nothing better is known. */
  saw(bytesPerSecond: number): void;
}

/** `configured` and the interfaces' speed are bounds; the best rate seen only stands in for them. */
export function createLinkRate(configured: number, interfaceRate = fastestInterface()): LinkRate {
  const known = configured > 0 ? configured : interfaceRate;
  let best = 0;
  return {
    current: () => (known > 0 ? known : best),
    saw(bytesPerSecond) {
      best = Math.max(best, bytesPerSecond);
    },
  };
}
