import { readFileSync } from "node:fs";
import { HealthService } from "@weightline/proto/health";
import { fromRpcError, WeightlineError } from "@weightline/runtime/client";
import { localAgent, localError, unreachable } from "../clients.ts";
import { openControlPlane } from "../control-plane-channel.ts";
import { levelColour, print, printable, printData } from "../output/output.ts";
import { waiting } from "../output/waiting.ts";
import type { Settings } from "../settings.ts";
import { versionCheck } from "../version-skew.ts";

export const CHECK_LEVELS = ["ok", "note", "warning", "error"] as const;

/** One thing that was looked at, here or by the agent. */
export interface Check {
  name: string;
  level: (typeof CHECK_LEVELS)[number];
  evidence: string;
  cure: string;
}

const OWN_VERSION: string = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")).version;

interface Examined {
  checks: Check[];
  reached: boolean;
  version: string;
}

/** A level that this version does not know is shown as a warning rather than lost. */
function readLevel(level: string): Check["level"] {
  return CHECK_LEVELS.find((known) => known === level) ?? "warning";
}

async function examineAgent(settings: Settings): Promise<Examined> {
  const agent = localAgent(settings);
  let version = "";
  try {
    const status = await agent.status({}, { timeoutMs: settings.timeoutMs });
    version = status.version;
    const reasons = status.notReady.join("; ");
    const evidence = `node ${status.node} answers at ${settings.socket}`;
    const ready: Check =
      reasons === ""
        ? { name: "agent", level: "ok", evidence: `${evidence} and is ready`, cure: "" }
        : {
            name: "agent",
            level: "warning",
            evidence: `${evidence} and is not ready: ${reasons}`,
            cure: "wait for it, or mend what it names",
          };
    const { checks } = await agent.doctor({}, { timeoutMs: settings.timeoutMs });
    const own = checks.map(({ name, level, evidence: found, cure }) => ({
      name,
      level: readLevel(level),
      evidence: found,
      cure,
    }));
    return { checks: [ready, ...own], reached: true, version };
  } catch (error) {
    const known = localError(settings, error);
    return { checks: [agentFault(settings, known, version)], reached: version !== "", version };
  }
}

/** The agent as one check, where it told no more. */
function agentFault(settings: Settings, { code, message, wayOut }: WeightlineError, version: string): Check {
  if (version === "") {
    return { name: "agent", level: "error", evidence: `the agent cannot be reached: ${message}`, cure: wayOut };
  }
  const evidence = `the agent at ${settings.socket} answers, and did not examine its node: ${message}`;
  return code === "PermissionDenied"
    ? { name: "agent", level: "note", evidence, cure: wayOut }
    : { name: "agent", level: "warning", evidence, cure: wayOut || "an older agent cannot; upgrade it" };
}

async function examineControlPlane(settings: Settings): Promise<Examined> {
  const channel = openControlPlane(settings, settings.endpoint);
  try {
    const { status, version, uptime } = await channel.client(HealthService).getHealth({});
    const evidence = `the control plane at ${settings.endpointText} answers here: ${status}, up ${uptime} s`;
    return {
      checks: [
        status === "ok"
          ? { name: "endpoint", level: "ok", evidence, cure: "" }
          : { name: "endpoint", level: "warning", evidence, cure: "wait for it, or look at its log" },
      ],
      reached: true,
      version,
    };
  } catch (error) {
    const { message, wayOut } = unreachable(settings.endpointText, fromRpcError(error));
    return {
      checks: [{ name: "endpoint", level: "error", evidence: message, cure: wayOut }],
      reached: false,
      version: "",
    };
  } finally {
    channel.close();
  }
}

async function printChecks(settings: Settings, checks: readonly Check[]): Promise<void> {
  if (settings.output === "json" || settings.output === "yaml") {
    await printData(settings.output, checks);
    return;
  }
  const width = Math.max(...checks.map(({ name }) => name.length));
  const lines = checks.flatMap(({ name, level, evidence, cure }) => {
    const head = `${levelColour(level, level.padEnd("warning".length))}  ${name.padEnd(width)}  ${printable(evidence)}`;
    return cure === "" ? [head] : [head, `${" ".repeat(width + 11)}-> ${printable(cure)}`];
  });
  await print(`${lines.join("\n")}\n`);
}

/** Every check with its level, evidence and cure. Exit 1 if one is an error, 4 if nobody could be asked. */
export async function doctor(settings: Settings): Promise<void> {
  const [agent, controlPlane] = await waiting(
    "examining",
    Promise.all([examineAgent(settings), examineControlPlane(settings)]),
  );
  const versions = versionCheck([
    { program: "mxctl", version: OWN_VERSION },
    ...(agent.reached ? [{ program: "agent", version: agent.version }] : []),
    ...(controlPlane.reached ? [{ program: "control plane", version: controlPlane.version }] : []),
  ]);
  const checks = [...agent.checks, ...controlPlane.checks, versions];
  await printChecks(settings, checks);
  if (!agent.reached && !controlPlane.reached) {
    throw new WeightlineError(
      "Unavailable",
      "nothing could be checked: neither the agent nor the control plane answers",
      {
        field: "doctor",
        wayOut: "start them, or say where they are (--socket, --endpoint)",
      },
    );
  }
  const failed = checks.filter(({ level }) => level === "error").map(({ name }) => name);
  if (failed.length > 0) {
    throw new WeightlineError("Refused", `${failed.length} check(s) failed: ${failed.join(", ")}`, {
      field: "doctor",
      value: failed.join(","),
      wayOut: "see the lines with -> above",
    });
  }
}
