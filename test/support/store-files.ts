import { createHash } from "node:crypto";
import { lstatSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { runCommand } from "./program.ts";

/** A holding's record.json, as JSON. */
export type RecordJson = Record<string, unknown> & { state: string; object_digest: string; layout_digest: string };

export function readRecordJson(folder: string): RecordJson {
  return JSON.parse(readFileSync(`${folder}/record.json`, "utf8"));
}

/** Writes a record with members changed, and the digest that belongs to it. */
export function changeRecord(folder: string, change: Record<string, unknown>): void {
  const { digest: _, ...json } = { ...readRecordJson(folder), ...change };
  const digest = createHash("sha256").update(JSON.stringify(json)).digest("hex");
  writeFileSync(`${folder}/record.json`, JSON.stringify({ ...json, digest }));
}

/** Folder of the holding that has this model name in its record. */
export function holdingFolder(store: string, modelName: string): string {
  for (const id of readdirSync(`${store}/holdings`)) {
    const folder = `${store}/holdings/${id}`;
    const { identities } = readRecordJson(folder) as unknown as {
      identities: Array<{ identity: { model_name: string } }>;
    };
    if (identities.some(({ identity }) => identity.model_name === modelName)) {
      return folder;
    }
  }
  throw new Error(`${store} has no holding called ${modelName}`);
}

/** Every file and folder below `path` with its content's digest, for "nothing was touched" and "nothing is left". */
export function contents(path: string): Record<string, string> {
  return Object.fromEntries(
    (readdirSync(path, { recursive: true }) as string[])
      .map((name): [string, string] => {
        const status = lstatSync(`${path}/${name}`);
        return [
          name,
          status.isFile()
            ? createHash("sha256")
                .update(readFileSync(`${path}/${name}`))
                .digest("hex")
            : status.isDirectory()
              ? "folder"
              : "other",
        ];
      })
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}

/** Bytes of memory that everything below `path` takes. */
export function allocatedBytes(path: string): number {
  return (readdirSync(path, { recursive: true }) as string[]).reduce((sum, name) => {
    const status = lstatSync(`${path}/${name}`, { throwIfNoEntry: false });
    return sum + (status?.isFile() === true ? status.blocks * 512 : 0);
  }, 0);
}

/** Takes the immutable flag off everything below a path, as damage must. */
export async function clearFlags(path: string): Promise<void> {
  await runCommand(["chattr", "-R", "-f", "-i", path]);
}
