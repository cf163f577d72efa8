// Small files of the store: whole or not at all, also when not one page is free.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statfsSync, symlinkSync, writeFileSync } from "node:fs";
import t from "tap";
import { readFileAtOnce, writeWholeJson } from "../src/store/whole-file.ts";

const cannotMount = process.getuid?.() === 0 ? false : "a tmpfs can be mounted by root alone";

t.test("beside it, then renamed: nothing else is left", async (t) => {
  const folder = mkdtempSync("/dev/shm/weightline-whole-");
  t.teardown(() => rmSync(folder, { recursive: true }));
  await writeWholeJson(`${folder}/a.json`, '{"a":1}\n');
  await writeWholeJson(`${folder}/a.json`, '{"a":2}\n');
  t.equal(readFileSync(`${folder}/a.json`, "utf8"), '{"a":2}\n');
  t.same(readdirSync(folder), ["a.json"]);
  await t.rejects(writeWholeJson(`${folder}/none/a.json`, "{}"), { code: "ENOENT" });
});

t.test(
  "a full tmpfs: the old file's own page takes shorter and longer ones; a second page is not there",
  { skip: cannotMount },
  async (t) => {
    const mount = mkdtempSync("/dev/shm/weightline-whole-");
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]);
    t.teardown(() => {
      execFileSync("umount", ["-l", mount]);
      rmSync(mount, { recursive: true });
    });
    const path = `${mount}/a.json`;
    await writeWholeJson(path, JSON.stringify({ a: "long enough" }));
    t.throws(() => writeFileSync(`${mount}/filler`, Buffer.alloc(2 << 20)), { code: "ENOSPC" });
    t.equal(statfsSync(mount).bfree, 0, "it is full");
    for (const json of [{}, { a: "x".repeat(3000) }, { a: 1 }]) {
      await writeWholeJson(path, `${JSON.stringify(json)}\n`);
      t.same(JSON.parse(readFileSync(path, "utf8")), json);
    }
    await t.rejects(writeWholeJson(path, JSON.stringify({ a: "x".repeat(5000) })), { code: "ENOSPC" });
    t.same(JSON.parse(readFileSync(path, "utf8")), { a: 1 }, "the old one stays");
    await t.rejects(writeWholeJson(`${mount}/b.json`, "{}"), { code: "ENOSPC" });
    t.same(readdirSync(mount).sort(), ["a.json", "filler"], "nothing half-written");
  },
);

t.test("read at once: at most so many bytes, and nothing that waits or leads elsewhere", async (t) => {
  const folder = mkdtempSync("/dev/shm/weightline-whole-");
  t.teardown(() => rmSync(folder, { recursive: true }));
  writeFileSync(`${folder}/file`, "0123456789");
  t.equal(readFileAtOnce(`${folder}/file`, 100).toString(), "0123456789");
  t.equal(readFileAtOnce(`${folder}/file`, 4).toString(), "0123");
  t.throws(() => readFileAtOnce(`${folder}/none`, 4), { code: "ENOENT" });
  symlinkSync(`${folder}/file`, `${folder}/link`);
  t.throws(() => readFileAtOnce(`${folder}/link`, 4), { code: "ELOOP" });
  // Nobody writes to it: who waits for a writer waits for ever.
  execFileSync("mkfifo", [`${folder}/pipe`]);
  t.equal(readFileAtOnce(`${folder}/pipe`, 4).length, 0);
  t.throws(() => readFileAtOnce(folder, 4), { code: "EISDIR" });
  const open = readdirSync("/proc/self/fd").length;
  for (let i = 0; i < 20; i++) {
    t.throws(() => readFileAtOnce(folder, 4));
  }
  t.equal(readdirSync("/proc/self/fd").length, open, "nothing stays open");
});
