import { enumName } from "@weightline/proto";
import { SourceStatusSchema } from "@weightline/proto/p2p";
import { withControlPlane } from "../clients.ts";
import { printRows } from "../output/output.ts";
import { waiting } from "../output/waiting.ts";
import type { Settings } from "../settings.ts";

export async function sources(settings: Settings, { model }: { model?: string }): Promise<void> {
  const { sources: list } = await waiting(
    "asking the control plane",
    withControlPlane(settings, (client) => client.listSources({ modelName: model ?? "" })),
  );
  const data = list.map((source) => ({
    source_id: source.sourceId,
    model_name: source.modelName,
    revision: source.revision,
    workers: source.workers.map((worker) => ({
      worker_id: worker.workerId,
      rank: worker.rank,
      status: enumName(SourceStatusSchema, worker.status),
      node: worker.node,
      accelerator: worker.accelerator,
      updated_at: worker.updatedAt,
      object_digest: Buffer.from(worker.objectDigest).toString("hex"),
    })),
  }));
  const rows = data.flatMap((source) => source.workers.map((worker) => ({ source, worker })));
  await printRows(
    settings.output,
    data,
    rows,
    [
      { title: "SOURCE", value: ({ source }) => source.source_id },
      { title: "MODEL", value: ({ source }) => source.model_name },
      { title: "REVISION", wide: true, value: ({ source }) => source.revision },
      { title: "RANK", right: true, value: ({ worker }) => String(worker.rank) },
      { title: "STATUS", value: ({ worker }) => worker.status },
      { title: "NODE", value: ({ worker }) => (worker.node === "" ? "-" : worker.node) },
      { title: "ACCELERATOR", value: ({ worker }) => worker.accelerator },
      { title: "DIGEST", value: ({ worker }) => worker.object_digest.slice(0, 12) },
      { title: "WORKER", wide: true, value: ({ worker }) => worker.worker_id },
    ],
    model === undefined ? "no sources" : `no source of model ${model}`,
  );
}
