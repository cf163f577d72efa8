import { resolve } from "node:path";
import { create } from "@bufbuild/protobuf";
import { filesIdentity } from "@weightline/proto";
import { type FillProgress, FillProgressSchema, type Holding } from "@weightline/proto/common";
import { ERROR_CODES, formatByteSize, isErrorCode, WeightlineError } from "@weightline/runtime/client";
import { followAgent, withControlPlane } from "../clients.ts";
import { onInterruption } from "../interruption.ts";
import { print, printData, printFacts, printRows } from "../output/output.ts";
import { createProgressDisplay } from "../output/progress.ts";
import { readWhole, type Settings } from "../settings.ts";

export interface ModelFlags {
  modelName: string;
  revision?: string;
  rank?: string;
}

const RANK_MAX = 2 ** 32 - 1;

/** A rank of the command line. */
export function readRank(text: string | undefined): number {
  return readWhole(text ?? "0", "--rank", RANK_MAX);
}

/** An empty value is an unset variable of somebody's script, never what was meant. */
export function requireValue(name: string, value: string | undefined): void {
  if (value === "") {
    throw new WeightlineError("InvalidArgument", `${name} is empty`, { field: name, value: "", wayOut: "give one" });
  }
}

function hex(bytes: Uint8Array | undefined): string {
  return Buffer.from(bytes ?? []).toString("hex");
}

function isData(settings: Settings): boolean {
  return settings.output === "json" || settings.output === "yaml";
}

export async function load(settings: Settings, path: string, flags: ModelFlags & { replace?: boolean }): Promise<void> {
  requireValue("PATH", path);
  requireValue("--model-name", flags.modelName);
  const display = createProgressDisplay();
  const rank = readRank(flags.rank);
  // The agent opens it in its own mount namespace; what "here" means is the caller's affair.
  const request = {
    path: resolve(path),
    modelName: flags.modelName,
    revision: flags.revision ?? "",
    rank,
    replace: flags.replace === true,
  };
  onInterruption("the load ends with this command, unless somebody else waits for the same; nothing of it stays");
  try {
    for await (const { event } of followAgent(settings, (agent, options) => agent.load(request, options))) {
      if (event.case === "progress") {
        display.show("", event.value);
      } else if (event.case === "loaded") {
        display.end();
        const { holding, sourceId, ignoredFiles, warnings, extraTensors, alreadyHeld, revision } = event.value;
        const data = {
          source_id: sourceId,
          object_digest: hex(holding?.objectDigest),
          total_bytes: holding?.totalBytes ?? 0n,
          items: holding?.items ?? 0n,
          ignored_files: ignoredFiles,
          warnings,
          extra_tensors: extraTensors,
          already_held: alreadyHeld,
          revision,
        };
        if (isData(settings)) {
          await printData(settings.output, data);
        } else {
          await printFacts([
            ["model", `${flags.modelName}${revision === "" ? "" : ` at revision ${revision}`}, rank ${rank}`],
            ["source id", sourceId],
            ["object digest", data.object_digest],
            [
              "size",
              `${formatByteSize(data.total_bytes)}, ${data.items} tensors${alreadyHeld ? " (held already)" : ""}`,
            ],
            ...(ignoredFiles.length > 0 ? [["ignored files", ignoredFiles.join(", ")] as const] : []),
            ...(extraTensors > 0n
              ? [["ignored tensors", `${extraTensors} that the index gives to other shards`] as const]
              : []),
            ...warnings.map((warning) => ["warning", warning] as const),
          ]);
        }
      }
    }
  } finally {
    display.end();
  }
}

export async function pull(settings: Settings, flags: ModelFlags & { nodes?: string }): Promise<void> {
  requireValue("--model-name", flags.modelName);
  const rank = readRank(flags.rank);
  if (flags.nodes !== undefined) {
    await pullNodes(settings, flags, rank, flags.nodes);
    return;
  }
  const display = createProgressDisplay();
  onInterruption("the transfer goes on without this command; mxctl evict takes it back");
  try {
    const wanted = {
      name: { case: "model" as const, value: { modelName: flags.modelName, revision: flags.revision ?? "" } },
      rank,
    };
    for await (const { event } of followAgent(settings, (agent, options) => agent.pull({ wanted }, options))) {
      if (event.case === "progress") {
        display.show("", event.value);
      } else if (event.case === "pulled") {
        display.end();
        await printPulled(settings, event.value.holding, event.value.outcome);
      }
    }
  } finally {
    display.end();
  }
}

async function printPulled(settings: Settings, holding: Holding | undefined, outcome: string): Promise<void> {
  const data = {
    object_digest: hex(holding?.objectDigest),
    total_bytes: holding?.totalBytes ?? 0n,
    items: holding?.items ?? 0n,
    outcome,
    holding_id: holding?.holdingId ?? "",
  };
  if (isData(settings)) {
    await printData(settings.output, data);
  } else {
    await print(`${outcome}: ${formatByteSize(data.total_bytes)}, object ${data.object_digest}\n`);
  }
}

/** Several nodes' progress as one. */
function sumOf(all: Iterable<FillProgress>): FillProgress {
  const sum = create(FillProgressSchema, { state: "receiving" });
  for (const { verifiedBytes, totalBytes, bytesPerS } of all) {
    sum.verifiedBytes += verifiedBytes;
    sum.totalBytes += totalBytes;
    // One that is done, or has not begun, has no rate now.
    sum.bytesPerS += verifiedBytes < totalBytes ? bytesPerS : 0;
  }
  return sum;
}

async function pullNodes(settings: Settings, flags: ModelFlags, rank: number, nodes: string): Promise<void> {
  const names = nodes === "all" ? [] : nodes.split(",").map((name) => name.trim());
  const given = names.filter((name) => name !== "");
  // An empty name is a variable that was not set: the nodes that were meant would go without.
  if (given.length < names.length) {
    const what = given.length === 0 ? "names no node" : `"${nodes}" has an empty name between its commas`;
    throw new WeightlineError("InvalidArgument", `--nodes ${what}`, {
      field: "--nodes",
      value: nodes,
      wayOut: "give names with commas between them, or all",
    });
  }
  onInterruption("the nodes go on without this command; mxctl transfers shows them");
  const display = createProgressDisplay();
  const progress = new Map<string, FillProgress>();
  const results = new Map<
    string,
    { node: string; state: string; object_digest: string; error_code: string; error: string }
  >();
  const request = { nodes: names, identity: filesIdentity(flags.modelName, flags.revision ?? ""), rank };
  try {
    await withControlPlane(settings, async (client) => {
      for await (const { node } of client.fillNodes(request)) {
        if (node?.progress !== undefined) {
          progress.set(node.node, node.progress);
          display.show(
            `${results.size} of ${Math.max(progress.size, names.length)} nodes done`,
            sumOf(progress.values()),
          );
        }
        if (node !== undefined && (node.done || node.errorCode !== "")) {
          results.set(node.node, {
            node: node.node,
            state: node.done ? "complete" : "failed",
            object_digest: hex(node.objectDigest),
            error_code: node.errorCode,
            error: node.error,
          });
        }
      }
    });
  } finally {
    display.end();
  }
  const rows = [...results.values()].sort((a, b) => a.node.localeCompare(b.node));
  await printRows(
    settings.output,
    rows,
    rows,
    [
      { title: "NODE", value: (row) => row.node },
      { title: "STATE", value: (row) => row.state },
      { title: "DIGEST", value: (row) => row.object_digest.slice(0, 12) },
      { title: "ERROR", value: (row) => row.error },
    ],
    "no node is ready",
  );
  const failed = rows.find(({ state }) => state === "failed");
  if (failed !== undefined) {
    const code = isErrorCode(failed.error_code) ? failed.error_code : "Internal";
    throw new WeightlineError(code, `node ${failed.node}: ${failed.error}`, {
      field: "--nodes",
      value: failed.node,
      wayOut: ERROR_CODES[code].meaning,
    });
  }
}
