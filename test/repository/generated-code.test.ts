import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import t from "tap";
import { ROOT, runCommand } from "../support/program.ts";

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath}/${entry.name}`.slice(folder.length + 1))
    .sort();
}

t.test("generated TypeScript is what the .proto files give", async (t) => {
  const out = mkdtempSync(`${tmpdir()}/weightline-gen-`);
  t.teardown(() => rmSync(out, { recursive: true }));
  const done = await runCommand([`${ROOT}node_modules/.bin/buf`, "generate", "--output", out], {
    cwd: `${ROOT}packages/proto`,
    env: { PATH: `${ROOT}node_modules/.bin:${ROOT}.tools/node_modules/.bin:${process.env["PATH"]}` },
  });
  t.equal(done.code, 0, done.stderr);
  const committed = `${ROOT}packages/proto/src/gen`;
  const fresh = `${out}/src/gen`;
  t.same(filesBelow(committed), filesBelow(fresh), "the same files");
  for (const file of filesBelow(fresh)) {
    t.ok(
      readFileSync(`${committed}/${file}`).equals(readFileSync(`${fresh}/${file}`)),
      `${file}: run pnpm --filter @weightline/proto run generate`,
    );
  }
});

t.test("the layout's test vectors are what their generator gives", async (t) => {
  const out = mkdtempSync(`${tmpdir()}/weightline-vectors-`);
  t.teardown(() => rmSync(out, { recursive: true }));
  const committed = `${ROOT}packages/rdma-native/test/vectors/layout`;
  const done = await runCommand(["python3", `${committed}/generate.py`, out]);
  t.equal(done.code, 0, done.stderr);
  t.same(
    filesBelow(committed).filter((file) => file !== "generate.py"),
    filesBelow(out),
  );
  for (const file of filesBelow(out)) {
    t.ok(readFileSync(`${committed}/${file}`).equals(readFileSync(`${out}/${file}`)), file);
  }
});
