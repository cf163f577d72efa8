// ./mx bench NAME [--json] [--runs N]
import { parseArgs } from "node:util";
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

const NAMES = Object.keys(BENCHES).join(", ");
const USAGE = `usage: ./mx bench NAME [--runs N] [--json]

  NAME       what is measured: ${NAMES}
  --runs N   rounds of each series, default ${RUNS}; best and median are told
  --json     the result as JSON, with every value
`;

function fail(problem: string): never {
  process.stderr.write(`bench: ${problem}\n\n${USAGE}`);
  process.exit(2);
}

function readArguments() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        runs: { type: "string", default: String(RUNS) },
        json: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    });
  } catch (error) {
    return fail((error as Error).message);
  }
}

const { values, positionals } = readArguments();
if (values.help) {
  process.stdout.write(USAGE);
  process.exit(0);
}
const [name = "", ...more] = positionals;
const load = BENCHES[name] ?? fail(name === "" ? "no NAME is given" : `there is no bench ${name}`);
if (more.length > 0) {
  fail(`one NAME at a time, not also ${more.join(" ")}`);
}
const runs = Number(values.runs);
if (!Number.isInteger(runs) || runs < 1) {
  fail(`--runs is ${values.runs}, and needs a whole number from 1`);
}
const { run } = await load();
const result = await run(runs);
process.stdout.write(values.json ? `${JSON.stringify(result, undefined, 2)}\n` : toText(result));
process.exit(0);
