// A 34,000-tensor object with names and shapes like DeepSeek's: acquire of a held object to the first readable tensor.
import { writeFileSync } from "node:fs";
import { createCluster } from "../test/support/cluster.ts";
import { type BenchResult, check, machineName } from "./measure.ts";

const LAYERS = 61;
const EXPERTS = 92;
const BYTES_EACH = 1024;

function names(): string[] {
  const all = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"];
  for (let layer = 0; layer < LAYERS; layer++) {
    for (const part of [
      "self_attn.q_a_proj",
      "self_attn.q_b_proj",
      "self_attn.kv_a_proj_with_mqa",
      "self_attn.kv_b_proj",
      "self_attn.o_proj",
      "mlp.gate",
    ]) {
      all.push(`model.layers.${layer}.${part}.weight`, `model.layers.${layer}.${part}.weight_scale_inv`);
    }
    for (let expert = 0; expert < EXPERTS; expert++) {
      for (const part of ["gate_proj", "up_proj", "down_proj"]) {
        all.push(
          `model.layers.${layer}.mlp.experts.${expert}.${part}.weight`,
          `model.layers.${layer}.mlp.experts.${expert}.${part}.weight_scale_inv`,
        );
      }
    }
  }
  return all;
}

const PROGRAM = `
import json, time
runs, first, views, copied = int(sys.argv[1]), [], [], 0
for i in range(runs):
    start = time.perf_counter()
    held = agent.acquire(model_name="m")
    byte = held["model.layers.30.mlp.experts.50.up_proj.weight"].data[0]
    first.append((time.perf_counter() - start) * 1000)
    start = time.perf_counter()
    total = sum(len(held[name].data) for name in held.names)
    views.append((time.perf_counter() - start) * 1000)
    copied += held.copied_bytes
    count = len(held.names)
    held.release()
print(json.dumps({"first": first, "views": views, "copied": copied, "count": count, "total": total}))
`;

export async function run(runs: number): Promise<BenchResult> {
  const cluster = await createCluster();
  try {
    const agent = await cluster.startAgent("a");
    const all = names();
    const members = all.map(
      (name, i) =>
        `"${name}":{"dtype":"${name.endsWith("inv") ? "F32" : "F8_E4M3"}","shape":[${name.endsWith("inv") ? "16,16" : "32,32"}],"data_offsets":[${i * BYTES_EACH},${(i + 1) * BYTES_EACH}]}`,
    );
    const header = Buffer.from(`{${members.join(",")}}`);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const path = `${cluster.folder}/m.safetensors`;
    writeFileSync(path, Buffer.concat([length, header, Buffer.alloc(all.length * BYTES_EACH, 7)]));
    for await (const _ of agent.client.load({ path, modelName: "m" })) {
      // Progress.
    }
    const seen = JSON.parse(await agent.python(PROGRAM, [String(Math.max(runs, 20))])) as {
      first: number[];
      views: number[];
      copied: number;
      count: number;
    };
    return {
      bench: "attach",
      machine: machineName(),
      series: [
        { name: "acquire to the first readable tensor", values: seen.first, unit: "ms" },
        { name: "views of all tensors", values: seen.views, unit: "ms" },
      ],
      checks: [
        check("acquire to the first readable tensor, ms", seen.first, { atMost: 10 }),
        check("all views, ms", seen.views, { atMost: 150 }),
        check("bytes copied", [seen.copied], { atMost: 0 }),
      ],
      notes: [`${seen.count} tensors`],
    };
  } finally {
    await cluster.stop();
  }
}
