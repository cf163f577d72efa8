import { fileURLToPath } from "node:url";
import { cleanEnvironment, ROOT, type RunningProgram, runCommand, startCommand } from "../../support/program.ts";

/** Versions of the package that the tier's set-up installs, the newest first. */
export const VERSIONS = ["0.7.0", "0.5.1"] as const;

const SCRIPT = fileURLToPath(new URL("./stock_client.py", import.meta.url));
const PLACE = `${ROOT}.tools/interop`;

function surroundings(version: string, more: Record<string, string>): Record<string, string> {
  return cleanEnvironment({
    PYTHONPATH: `${PLACE}/${version}:${PLACE}/needs`,
    PYTHONDONTWRITEBYTECODE: "1",
    PYTHONUNBUFFERED: "1",
    ...more,
  });
}

/** Runs a scenario of stock_client.py to its end; gives what it said. */
export async function runStock<Said>(
  version: string,
  scenario: string,
  parameters: readonly string[],
  env: Record<string, string> = {},
): Promise<Said> {
  const done = await runCommand(["python3", SCRIPT, scenario, ...parameters], { env: surroundings(version, env) });
  if (done.code !== 0) {
    throw new Error(`${scenario} of ${version}: exit ${done.code}\n${done.stdout}\n${done.stderr}`);
  }
  return JSON.parse(done.stdout.trim().split("\n").at(-1) ?? "") as Said;
}

/** Starts one that goes on until its input ends. */
export function startStock(version: string, scenario: string, parameters: readonly string[]): RunningProgram {
  return startCommand(["python3", SCRIPT, scenario, ...parameters], { env: surroundings(version, {}) });
}
