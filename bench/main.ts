// ./mx bench NAME [--json] [--runs N]
import { type BenchResult, toText } from "./measure.ts";

const BENCHES: Record<string, () => Promise<{ run: (runs: number) => Promise<BenchResult> }>> = {
  transfer: () => import("./transfer.ts"),
  "limited-link": () => import("./limited-link.ts"),
  load: () => import("./load.ts"),
  attach: () => import("./attach.ts"),
  restart: () => import("./restart.ts"),
  idle: () => import("./idle.ts"),
  digest: () => import("./digest.ts"),
  offer: () => import("./offer.ts"),
  "busy-attach": () => import("./busy-attach.ts"),
  crowd: () => import("./crowd.ts"),
  "many-holdings": () => import("./many-holdings.ts"),
  hostile: () => import("./hostile.ts"),
  directory: () => import("./directory.ts"),
  "directory-flood": () => import("./directory-flood.ts"),
};
const RUNS = 5;

const [name = "", ...flags] = process.argv.slice(2);
const load = BENCHES[name];
if (load === undefined) {
  process.stderr.write(`usage: ./mx bench NAME [--json] [--runs N]   NAME: ${Object.keys(BENCHES).join(", ")}\n`);
  process.exit(2);
}
const runs = flags.includes("--runs") ? Number(flags[flags.indexOf("--runs") + 1]) : RUNS;
if (!Number.isInteger(runs) || runs < 1) {
  process.stderr.write("bench: --runs needs a whole number from 1\n");
  process.exit(2);
}
const { run } = await load();
const result = await run(runs);
process.stdout.write(flags.includes("--json") ? `${JSON.stringify(result, undefined, 2)}\n` : toText(result));
process.exit(0);
