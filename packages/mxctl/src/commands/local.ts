import { enumName } from "@weightline/proto";
import { NodeStateSchema } from "@weightline/proto/common";
import { HealthService } from "@weightline/proto/health";
import { formatByteSize, fromRpcError, WeightlineError } from "@weightline/runtime/client";
import { localAgent, localError, unreachable } from "../clients.ts";
import { openControlPlane } from "../control-plane-channel.ts";
import { onInterruption } from "../interruption.ts";
import { print, printData, printRows } from "../output/output.ts";
import { waiting } from "../output/waiting.ts";
import type { Settings } from "../settings.ts";
import { type ModelFlags, readRank, requireValue } from "./fills.ts";

export async function evict(
  settings: Settings,
  flags: Partial<ModelFlags> & { sourceId?: string; force?: boolean },
): Promise<void> {
  if ((flags.modelName === undefined) === (flags.sourceId === undefined)) {
    throw new WeightlineError("InvalidArgument", "give --model-name or --source-id, one of them", {
      field: "--model-name",
      wayOut: "mxctl evict --model-name NAME",
    });
  }
  requireValue("--model-name", flags.modelName);
  requireValue("--source-id", flags.sourceId);
  const name =
    flags.sourceId === undefined
      ? { case: "model" as const, value: { modelName: flags.modelName ?? "", revision: flags.revision ?? "" } }
      : { case: "sourceId" as const, value: flags.sourceId };
  try {
    const request = { wanted: { name, rank: readRank(flags.rank) }, force: flags.force === true };
    onInterruption("the eviction goes on without this command");
    const evicting = localAgent(settings).evict(request, { timeoutMs: settings.timeoutMs });
    const reply = await waiting("evicting: waiting for the memory to be free", evicting);
    const data = { holding_ids: reply.holdingIds, freed_bytes: reply.freedBytes, pending_bytes: reply.pendingBytes };
    if (settings.output === "json" || settings.output === "yaml") {
      await printData(settings.output, data);
    } else {
      const pending =
        reply.pendingBytes > 0n ? `; ${formatByteSize(reply.pendingBytes)} return when the last user leaves` : "";
      await print(
        `evicted ${reply.holdingIds.length} holding(s): ${formatByteSize(reply.freedBytes)} freed${pending}\n`,
      );
    }
  } catch (error) {
    throw localError(settings, error);
  }
}

export async function drain(settings: Settings): Promise<void> {
  try {
    await waiting("draining", localAgent(settings).drain({}, { timeoutMs: settings.timeoutMs }));
  } catch (error) {
    throw localError(settings, error);
  }
  await print("draining: what runs is served, nothing new is opened\n");
}

interface Health {
  program: "control-plane" | "node-agent";
  address: string;
  healthy: boolean;
  status: string;
  version: string;
  /** Why it is not healthy, or what a reader should know. */
  detail: string;
}

async function controlPlaneHealth(settings: Settings): Promise<Health> {
  const channel = openControlPlane(settings, settings.endpoint);
  try {
    const { status, version, uptime } = await channel.client(HealthService).getHealth({});
    return {
      program: "control-plane",
      address: settings.endpointText,
      healthy: status === "ok",
      status,
      version,
      detail: `up ${uptime} s`,
    };
  } catch (error) {
    return {
      program: "control-plane",
      address: settings.endpointText,
      healthy: false,
      status: "unreachable",
      version: "",
      detail: unreachable(settings.endpointText, fromRpcError(error)).message,
    };
  } finally {
    channel.close();
  }
}

async function agentHealth(settings: Settings): Promise<Health> {
  try {
    const status = await localAgent(settings).status({}, { timeoutMs: settings.timeoutMs });
    const ready = status.notReady.length === 0;
    return {
      program: "node-agent",
      address: settings.socket,
      healthy: ready,
      status: ready ? enumName(NodeStateSchema, status.state) : "not ready",
      version: status.version,
      detail: ready ? `node ${status.node}, control plane ${status.controlPlane}` : status.notReady.join("; "),
    };
  } catch (error) {
    return {
      program: "node-agent",
      address: settings.socket,
      healthy: false,
      status: "unreachable",
      version: "",
      detail: localError(settings, error).message,
    };
  }
}

/** Both daemons; exit code 4 when one that was asked for does not answer, 1 when it is not ready. */
export async function health(settings: Settings, { only }: { only?: string }): Promise<void> {
  if (only !== undefined && only !== "control-plane" && only !== "node-agent") {
    throw new WeightlineError("InvalidArgument", `--only "${only}" is not known`, {
      field: "--only",
      value: only,
      limit: "control-plane, node-agent",
      wayOut: "give control-plane or node-agent",
    });
  }
  const checks = [
    ...(only === "node-agent" ? [] : [controlPlaneHealth(settings)]),
    ...(only === "control-plane" ? [] : [agentHealth(settings)]),
  ];
  const rows = await waiting("asking", Promise.all(checks));
  await printRows(
    settings.output,
    rows,
    rows,
    [
      { title: "PROGRAM", value: (row) => row.program },
      { title: "STATUS", value: (row) => row.status },
      { title: "VERSION", value: (row) => row.version },
      { title: "ADDRESS", value: (row) => row.address },
      { title: "DETAIL", value: (row) => row.detail },
    ],
    "",
  );
  const sick = rows.find(({ healthy }) => !healthy);
  if (sick !== undefined) {
    throw new WeightlineError(
      sick.status === "unreachable" ? "Unavailable" : "Refused",
      `the ${sick.program} is ${sick.status}`,
      { field: "health", value: sick.status, wayOut: sick.detail },
    );
  }
}
