import {
  describeError,
  ERROR_CODES,
  missingValue,
  toWeightlineError,
  WeightlineError,
} from "@weightline/runtime/client";
import { Command, CommanderError } from "commander";
import { printable } from "./output/output.ts";
import { type GlobalFlags, readSettings, type Settings } from "./settings.ts";

const USAGE_EXIT = 2;

const EXIT_CODES =
  "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unreachable, 5 not permitted, 6 in use or already there.";

function withModel(command: Command, required: boolean, revision = "none"): Command {
  const flag = "--model-name <name>";
  const text = "name under which the model is, or will be, known";
  return (required ? command.requiredOption(flag, text) : command.option(flag, text))
    .option("--revision <revision>", `revision of the model (default: ${revision})`)
    .option("--rank <rank>", "rank of the worker (default: 0)");
}

/** What a command does beyond its first line, and how it is used. */
function explain(command: Command, text: string, examples: readonly string[]): Command {
  return command.addHelpText("after", `\n${text}\n\nExamples:\n${examples.map((line) => `  ${line}`).join("\n")}`);
}

type Run = (action: (settings: Settings) => Promise<void>) => Promise<void>;

function addLooking(program: Command, run: Run): void {
  explain(
    program
      .command("nodes")
      .description("nodes and what they hold")
      .action(() => run(async (settings) => (await import("./commands/nodes.ts")).nodes(settings))),
    "Asks the control plane. A node that has not announced itself for a while is shown as lost for ten minutes, then\nforgotten until it comes back. --output wide adds addresses, epochs, versions, tiers and source ids.",
    ["mxctl nodes -o wide", "mxctl nodes --output json | jq -r '.[] | select(.state != \"ready\") | .name'"],
  );
  explain(
    program
      .command("sources")
      .description("sources and their workers, those of stock clients too")
      .option("--model <name>", "only this model, exactly")
      .action((flags) => run(async (settings) => (await import("./commands/sources.ts")).sources(settings, flags))),
    "Asks the control plane. Two digests under one source id are two different contents of one name: see load --replace.",
    ["mxctl sources --model my-model", "mxctl sources --output wide"],
  );
  explain(
    program
      .command("transfers")
      .description("running transfers and those of the last minutes, read from the agents")
      .option("--watch", "again every second, until Ctrl-C; with --output json one array a line")
      .option("--last [count]", "the last ended ones (default: 10), with the time of each part")
      .action((flags) => run(async (settings) => (await import("./commands/transfers.ts")).transfers(settings, flags))),
    "OF BOUND is the rate as a share of what the link can carry, BLAME what held it back. Agents that do not answer the\ncontrol plane are named on standard error. --last tells where the seconds of ended transfers went: finding a parent,\nopening it, its layout, the first chunk, receiving, finishing; and what the streams waited for, summed over them.",
    ["mxctl transfers --watch", "mxctl transfers --watch -o json | jq -c '.[]'", "mxctl transfers --last 20"],
  );
  explain(
    program
      .command("doctor")
      .description("look at everything that this node's work depends on: level, evidence and cure of each check")
      .action(() => run(async (settings) => (await import("./commands/doctor.ts")).doctor(settings))),
    "Kernel, limits, memory, clocks, sockets, store, mover, control plane, and both ports of every other node, as the agent\nsees them. Exit code 1 when a check is an error, 4 when neither the agent nor the control plane answers, else 0.",
    ["mxctl doctor", "mxctl doctor -o json | jq -r '.[] | select(.level != \"ok\") | .name'"],
  );
  explain(
    program
      .command("health")
      .description("whether the control plane and the local agent can do their work")
      .option("--only <program>", "control-plane or node-agent")
      .action((flags) => run(async (settings) => (await import("./commands/local.ts")).health(settings, flags))),
    "Exit code 0 when all that was asked for is healthy, 4 when one does not answer, 1 when one is not ready.",
    [
      "mxctl health",
      "mxctl health --only node-agent",
      "mxctl --endpoint control-plane:8001 health --only control-plane",
    ],
  );
}

function addFilling(program: Command, run: Run): void {
  explain(
    withModel(program.command("load <path>"), true, "the snapshot's, else none")
      .description(
        "read a safetensors file, a model folder or a Hugging Face cache folder into the local agent's memory",
      )
      .option("--replace", "take the place of a different object of the same name on this node")
      .action((path, flags) =>
        run(async (settings) => (await import("./commands/fills.ts")).load(settings, path, flags)),
      ),
    "PATH is relative to the current directory, and must be a path that the agent sees too. Where an index file is, it\ndecides which files belong to the model. Ctrl-C ends the load, unless\nsomebody else waits for the same; nothing of it stays.",
    [
      "mxctl load ./my-model --model-name my-model",
      "mxctl load model.safetensors --model-name my-model --rank 1",
      "mxctl load ~/.cache/huggingface/hub/models--org--name --model-name org/name",
    ],
  );
  explain(
    withModel(program.command("pull"), true)
      .description(
        "fill the local agent's memory from another node, or that of the given nodes by way of the control plane",
      )
      .option("--nodes <names>", "names with commas between them, or all; no local agent is needed then")
      .action((flags) => run(async (settings) => (await import("./commands/fills.ts")).pull(settings, flags))),
    "Warms nodes up before pods start. The name, revision and rank must be those of the load. Ctrl-C ends the watching, not\nthe transfer. With --nodes the exit code is that of the first node, by name, that failed.",
    [
      "mxctl pull --model-name my-model",
      "mxctl pull --model-name my-model --nodes node-a,node-b",
      "mxctl pull --model-name my-model --nodes all --output json",
    ],
  );
}

function addEnding(program: Command, run: Run): void {
  explain(
    withModel(program.command("evict"), false)
      .description("take the local agent's copy out of memory")
      .option("--source-id <id>", "by mx_source_id instead of the name")
      .option("--force", "also when it is leased: the memory returns when the last user leaves")
      .action((flags) => run(async (settings) => (await import("./commands/local.ts")).evict(settings, flags))),
    "What is leased is not evicted: exit code 6, with the processes that use it. Copies on other nodes stay.",
    ["mxctl evict --model-name my-model", "mxctl evict --source-id f6f376e5d10056ad --force"],
  );
  explain(
    program
      .command("drain")
      .description("let the local agent open nothing new")
      .action(() => run(async (settings) => (await import("./commands/local.ts")).drain(settings))),
    "Before a node goes down: what runs is served to its end. A restart of the agent ends the drain.",
    ["mxctl drain"],
  );
}

/** The whole command line. `run` gives each action its settings. */
function build(run: Run): Command {
  const program = new Command("mxctl");
  program
    .description("Looks at Weightline and tells it what to hold.")
    .option(
      "--config <file>",
      "YAML file with endpoint, socket, output, timeout, ca, cert, key, token_file, trust_domain",
    )
    .option("--endpoint <host:port>", "control plane (environment MODEL_EXPRESS_ENDPOINT; default localhost:8001)")
    .option("--socket <path>", "local agent's socket (environment MX_AGENT_SOCKET; default /run/weightline/agent.sock)")
    .option("-o, --output <format>", "table, wide, json or yaml (default: table)")
    .option("--timeout <seconds>", "for each call (environment MODEL_EXPRESS_TIMEOUT; default 30)")
    .option("--ca <file>", "authorities of the control plane's certificate: TLS is spoken (see docs/security.md)")
    .option("--cert <file>", "your certificate, with --key")
    .option("--key <file>", "its key")
    .option("--token-file <file>", "a service account's token (environment MX_AUTH_TOKEN_PATH)")
    .option("--trust-domain <name>", "of the control plane's certificate (default: cluster.local)")
    .option("-v, --verbose", "show causes of errors")
    .configureHelp({ showGlobalOptions: true })
    .addHelpText(
      "after",
      `\nnodes, sources, transfers and pull --nodes ask the control plane; load, pull, evict and drain the local agent; health and doctor both.\nA call to the control plane is given again MODEL_EXPRESS_MAX_RETRIES times (default 0).\n\n${EXIT_CODES}\n\nExamples:\n  mxctl load ./my-model --model-name my-model\n  mxctl pull --model-name my-model --nodes all\n  mxctl nodes --output json`,
    )
    .exitOverride()
    .configureOutput({ writeErr: () => undefined });
  addLooking(program, run);
  addFilling(program, run);
  addEnding(program, run);
  return program;
}

/** Commander takes whatever follows as a flag's value: `--endpoint --output json` would name a host "--output". */
function checkFlagValues(program: Command, argv: readonly string[]): void {
  const options = [program, ...program.commands].flatMap((command) => command.options);
  const names = new Set(options.flatMap(({ long, short }) => [long, short]));
  const needy = new Set(options.filter(({ required }) => required).flatMap(({ long, short }) => [long, short]));
  const end = argv.indexOf("--");
  for (const [i, flag] of argv.slice(0, end < 0 ? argv.length : end).entries()) {
    const next = argv[i + 1];
    if (needy.has(flag) && next !== undefined && names.has(next.split("=")[0] ?? next)) {
      throw missingValue(flag, next);
    }
  }
}

function complain(error: unknown, verbose: boolean): number {
  const known = toWeightlineError(error);
  process.stderr.write(`mxctl: ${printable(describeError(known).replaceAll("\n", " "))}\n`);
  if (verbose && known.requestId !== "") {
    process.stderr.write(`  request: ${printable(known.requestId)} in the log of the program that answered\n`);
  }
  for (let cause: unknown = known.cause; verbose && cause instanceof Error; cause = cause.cause) {
    process.stderr.write(`  because: ${printable(cause.message.replaceAll("\n", " "))}\n`);
  }
  return ERROR_CODES[known.code].exit;
}

/** Runs one command line (after the program's name); gives the exit code. */
export async function runMxctl(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  let verbose = false;
  const program: Command = build(async (action) => {
    const flags = program.opts<GlobalFlags>();
    verbose = flags.verbose === true;
    await action(readSettings(flags, env));
  });
  try {
    if (argv.length === 0) {
      program.outputHelp();
      return USAGE_EXIT;
    }
    checkFlagValues(program, argv);
    await program.parseAsync([...argv], { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) {
        return 0;
      }
      const message = error.message.replace(/^error: /, "").replaceAll("\n", " ");
      return complain(
        new WeightlineError("InvalidArgument", message, { wayOut: "mxctl --help", cause: error }),
        verbose,
      );
    }
    return complain(error, verbose);
  }
}
