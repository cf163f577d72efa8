import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { native } from "@weightline/rdma-native";
import t from "tap";
import {
  attempts,
  makeHolding,
  nodeProgram,
  runProgram,
  startOffice,
  withoutCall,
  withTicket,
} from "./agent-helpers.ts";
import { newId } from "./native-helpers.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-view-`);
const store = mkdtempSync("/dev/shm/weightline-view-");
mkdirSync(`${store}/holdings`);
mkdirSync(`${folder}/ro`);
t.teardown(() => {
  rmSync(folder, { recursive: true });
  rmSync(store, { recursive: true });
});

const MOUNT_SETATTR = { number: 442, errno: 1 };
/** Runs a command where the store is mounted once more at `folder`/ro, by these words to mount(8). */
const mounted = (what: string, readOnly: boolean) => (command: string[]) => [
  "unshare",
  "--mount",
  "sh",
  "-c",
  `mount --bind ${what} ${folder}/ro ${readOnly ? `&& mount -o remount,bind,ro ${folder}/ro` : ""} && exec "$@"`,
  "sh",
  ...command,
];

/** What each level allows, beyond reading; as root, without one the kernel's doors stay open. */
const LEVELS = [
  { level: "detached read-only mount", mount: "", wrap: (command: string[]) => command, open: [] },
  {
    level: "plain",
    mount: "",
    wrap: (command: string[]) => withoutCall(MOUNT_SETATTR, command),
    open: ["reopen", "chmod", "truncate by name"],
  },
  { level: "read-only mount", mount: `${folder}/ro`, wrap: mounted(store, true), open: [] },
];

for (const { level, mount, wrap, open } of LEVELS) {
  t.test(`what a pod can do with a descriptor: ${level}`, async (t) => {
    const office = await startOffice(store, `${folder}/${newId()}.fd`, { mount, wrap });
    t.teardown(() => office.close());
    t.equal(office.level, level);
    // Made after the view was opened.
    const id = makeHolding(store, { "0000": Buffer.alloc(4096, 1) });
    t.same(await attempts(office, id, "files/0000"), ["read", "map", ...open]);
  });
}

t.test("--store-ro must be read-only, and the same store", async (t) => {
  const say = (mount: string) =>
    nodeProgram(
      `await native.openStoreView(${JSON.stringify(store)}, ${JSON.stringify(mount)}).then(() => console.log("opened"), (error) => console.log(error.code, error.field, error.message));`,
    );
  const ro = `${folder}/ro`;
  t.match((await runProgram(mounted(store, true)(say(ro)))).output, /^opened$/, "as it should be");
  t.match((await runProgram(mounted(store, false)(say(ro)))).output, /^Refused --store-ro .*not mounted read-only/);
  t.match(
    (await runProgram(mounted(`${store}/holdings`, true)(say(ro)))).output,
    /^Refused --store-ro .*is not the folder/,
  );
  t.match((await runProgram(say(`${folder}/none`))).output, /^NotFound /);
  await t.rejects(native.openStoreView(`${store}/none`, ""), { code: "NotFound" });
});

t.test("only regular files below the holding's own folder", async (t) => {
  const office = await startOffice(store, `${folder}/${newId()}.fd`);
  t.teardown(() => office.close());
  const other = makeHolding(store, { "0000": Buffer.from("other") });
  const id = makeHolding(store, { "0000": Buffer.from("own") });
  symlinkSync("/etc/passwd", `${store}/holdings/${id}/files/link`);
  symlinkSync(`../../${other}/files`, `${store}/holdings/${id}/files/folder`);
  const fifo = await runProgram(["mkfifo", `${store}/holdings/${id}/files/fifo`]);
  t.equal(fifo.code, 0);
  const code = async (holdingId: string, path: string) =>
    /"code":"(\w+)"/.exec(await withTicket(office, { holdingId, paths: [path] }, "print(ask(path, ticket)[1])"))?.[1];
  t.equal(await code(id, "files/0000"), undefined, "the file itself is handed out");
  t.equal(await code(id, "files/none"), "NotFound");
  t.equal(await code(id, "files"), "Corrupt");
  t.equal(await code(id, "files/fifo"), "Corrupt");
  for (const path of ["files/link", "files/folder/0000"]) {
    t.match(await code(id, path), /^(Internal|Corrupt|Refused)$/, path);
  }
  for (const path of ["../../lock", `../${other}/files/0000`, "/etc/passwd", "", ".", "files/../files/0000"]) {
    t.equal(await code(id, path), "InvalidArgument", `"${path}"`);
  }
  for (const holding of ["", ".", "..", id.toUpperCase(), id.slice(1), `${id}/files`]) {
    t.equal(await code(holding, "files/0000"), "InvalidArgument", `"${holding}"`);
  }
});

t.test("use after close, and double close", async (t) => {
  const view = await native.openStoreView(store, "");
  native.closeStoreView(view);
  native.closeStoreView(view);
  t.throws(() => native.storeViewLevel(view), { code: "Closed" });
  t.throws(() => native.createDescriptorServer(`${folder}/x`, view, () => undefined), { code: "Closed" });
  t.throws(() => native.storeViewLevel(native.openProcess(process.pid).process as never), { code: "InvalidArgument" });
});
