// A control plane (memory) and one agent on this machine, until Ctrl-C: for development and single machines.
import { type RunningProgram, startProgram } from "../test/support/program.ts";

const CONTROL_PLANE = "localhost:8001";

function usage(): never {
  process.stdout.write(
    "usage: ./mx up [agent options]   starts a control plane on localhost:8001 and one agent; options go to the agent\n\n  ./mx up --store /dev/shm/weightline --socket /run/weightline/agent.sock\n",
  );
  process.exit(0);
}

const flags = process.argv.slice(2);
if (flags.includes("--help") || flags.includes("-h")) {
  usage();
}

const programs: RunningProgram[] = [];
let stopping = false;

async function stop(code: number): Promise<never> {
  stopping = true;
  for (const program of programs.toReversed()) {
    await program.stop();
  }
  process.exit(code);
}

/** Starts one, shows what it writes, and ends all when it ends. */
async function start(name: string, entry: string, parameters: readonly string[]): Promise<void> {
  const program = startProgram(entry, parameters);
  programs.push(program);
  let shown = 0;
  const show = () => {
    const text = program.output();
    process.stderr.write(text.slice(shown));
    shown = text.length;
  };
  const timer = setInterval(show, 100);
  void program.exited.then((code) => {
    clearInterval(timer);
    show();
    if (!stopping) {
      process.stderr.write(`mx up: the ${name} ended with ${code}\n`);
      void stop(1);
    }
  });
  await program.waitFor(/ready/);
}

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => void stop(0));
}
await start("control plane", "control-plane", []);
await start("agent", "node-agent", ["--control-plane", CONTROL_PLANE, ...flags]);
process.stderr.write("mx up: ready. In another shell: ./mx mxctl load PATH --model-name NAME; Ctrl-C ends both\n");
