import { describeError, ERROR_CODES, toWeightlineError, WeightlineError } from "@weightline/runtime";
import { Command, CommanderError } from "commander";
import { type GlobalFlags, readSettings, type Settings } from "./settings.ts";

const USAGE_EXIT = 2;

const EXIT_CODES =
  "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unreachable, 5 not permitted, 6 in use or already there.";

function withModel(command: Command, required: boolean): Command {
  const flag = "--model-name <name>";
  const text = "name under which the model is, or will be, known";
  return (required ? command.requiredOption(flag, text) : command.option(flag, text))
    .option("--revision <revision>", "revision of the model (default: the snapshot's, else none)")
    .option("--rank <rank>", "rank of the worker (default: 0)");
}

/** The whole command line. `run` gives each action its settings. */
function build(run: (action: (settings: Settings) => Promise<void>) => Promise<void>): Command {
  const program = new Command("mxctl");
  program
    .description("Looks at Weightline and tells it what to hold.")
    .option("--config <file>", "YAML file with endpoint, socket, output, timeout")
    .option("--endpoint <host:port>", "control plane (environment MODEL_EXPRESS_ENDPOINT; default localhost:8001)")
    .option("--socket <path>", "local agent's socket (environment MX_AGENT_SOCKET; default /run/weightline/agent.sock)")
    .option("--output <format>", "table, wide, json or yaml (default: table)")
    .option("--timeout <seconds>", "for each call (environment MODEL_EXPRESS_TIMEOUT; default 30)")
    .option("-v, --verbose", "show causes of errors")
    .addHelpText(
      "after",
      `\n${EXIT_CODES}\n\nExamples:\n  mxctl load ./my-model --model-name my-model\n  mxctl pull --model-name my-model --nodes all\n  mxctl nodes --output json`,
    )
    .exitOverride()
    .configureOutput({ writeErr: () => undefined });

  program
    .command("nodes")
    .description("nodes and what they hold")
    .action(() => run(async (settings) => (await import("./commands/nodes.ts")).nodes(settings)));
  program
    .command("sources")
    .description("sources and their workers, those of stock clients too")
    .option("--model <name>", "only this model, exactly")
    .action((flags) => run(async (settings) => (await import("./commands/sources.ts")).sources(settings, flags)));
  program
    .command("transfers")
    .description("running transfers and those of the last minutes, read from the agents")
    .option("--watch", "again every second, until Ctrl-C")
    .action((flags) => run(async (settings) => (await import("./commands/transfers.ts")).transfers(settings, flags)));
  withModel(program.command("load <path>"), true)
    .description("read a safetensors file, a model folder or a Hugging Face cache folder into the local agent's memory")
    .option("--replace", "take the place of a different object of the same name on this node")
    .action((path, flags) =>
      run(async (settings) => (await import("./commands/fills.ts")).load(settings, path, flags)),
    );
  withModel(program.command("pull"), true)
    .description(
      "fill the local agent's memory from another node, or that of the given nodes by way of the control plane",
    )
    .option("--nodes <names>", "names with commas between them, or all; no local agent is needed then")
    .action((flags) => run(async (settings) => (await import("./commands/fills.ts")).pull(settings, flags)));
  withModel(program.command("evict"), false)
    .description("take the local agent's copy out of memory")
    .option("--source-id <id>", "by mx_source_id instead of the name")
    .option("--force", "also when it is leased: the memory returns when the last user leaves")
    .action((flags) => run(async (settings) => (await import("./commands/local.ts")).evict(settings, flags)));
  program
    .command("drain")
    .description("let the local agent open nothing new")
    .action(() => run(async (settings) => (await import("./commands/local.ts")).drain(settings)));
  program
    .command("health")
    .description("whether the control plane and the local agent can do their work")
    .option("--only <program>", "control-plane or node-agent")
    .action((flags) => run(async (settings) => (await import("./commands/local.ts")).health(settings, flags)));
  for (const command of program.commands) {
    command.exitOverride().configureOutput({ writeErr: () => undefined });
  }
  return program;
}

function complain(error: unknown, verbose: boolean): number {
  const known = toWeightlineError(error);
  process.stderr.write(`mxctl: ${describeError(known).replaceAll("\n", " ")}\n`);
  for (let cause: unknown = known.cause; verbose && cause instanceof Error; cause = cause.cause) {
    process.stderr.write(`  because: ${cause.message}\n`);
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
