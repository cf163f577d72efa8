// Digests by the addon: of memory in the cache, and of a file of 1 GiB on tmpfs.
import { randomFillSync } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { native } from "@weightline/rdma-native";
import { type BenchResult, machineName } from "./measure.ts";

const HOT_BYTES = 256 * 1024;
const HOT_ROUNDS = 2000;
const FILE_BYTES = 2 ** 30;

export async function run(runs: number): Promise<BenchResult> {
  const folder = mkdtempSync("/dev/shm/weightline-digest-");
  try {
    const piece = randomFillSync(Buffer.alloc(HOT_BYTES));
    writeFileSync(`${folder}/file`, randomFillSync(Buffer.alloc(FILE_BYTES)));
    const series = [];
    for (const algorithm of ["xxh3-128", "sha-256"] as const) {
      const hot: number[] = [];
      const cold: number[] = [];
      for (let i = 0; i < runs; i++) {
        const rounds = algorithm === "sha-256" ? HOT_ROUNDS / 10 : HOT_ROUNDS;
        let start = performance.now();
        for (let round = 0; round < rounds; round++) {
          native.digest(algorithm, piece);
        }
        hot.push((HOT_BYTES * rounds) / 1e6 / (performance.now() - start));
        start = performance.now();
        await native.digestFile(algorithm, `${folder}/file`, 0n, BigInt(FILE_BYTES));
        cold.push(FILE_BYTES / 1e6 / (performance.now() - start));
      }
      series.push(
        { name: `${algorithm}, 256 KiB in the cache (a copy into the addon included)`, values: hot, unit: "GB/s" },
        { name: `${algorithm}, a file of 1 GiB on tmpfs, one thread`, values: cold, unit: "GB/s" },
      );
    }
    return { bench: "digest", machine: machineName(), series, checks: [], notes: ["one thread each"] };
  } finally {
    rmSync(folder, { recursive: true });
  }
}
