import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { native } from "@weightline/rdma-native";
import t from "tap";

const folder = mkdtempSync(`${tmpdir()}/weightline-digest-`);
t.teardown(() => rmSync(folder, { recursive: true }));

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

t.test("known values", async (t) => {
  t.equal(
    hex(native.digest("xxh3-128", Buffer.alloc(0))),
    "99aa06d3014798d86001c324468d497f",
    "XXH3-128 of nothing, canonical",
  );
  t.equal(
    hex(native.digest("sha-256", Buffer.from("abc"))),
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
  );
});

t.test(
  "SHA-256 equals node:crypto's, and a file's digest that of its bytes, for sizes round all borders",
  async (t) => {
    for (const size of [0, 1, 63, 64, 65, 240, 241, 4096, 1 << 20, (1 << 20) + 1, 3_000_001]) {
      const data = Buffer.alloc(size, size % 251);
      data.set([1, 2, 3].slice(0, size));
      const path = `${folder}/${size}`;
      writeFileSync(path, data);
      t.equal(hex(native.digest("sha-256", data)), createHash("sha256").update(data).digest("hex"), `${size} bytes`);
      for (const algorithm of ["xxh3-128", "sha-256"] as const) {
        t.equal(
          hex(await native.digestFile(algorithm, path, 0n, BigInt(size))),
          hex(native.digest(algorithm, data)),
          `${algorithm} of ${size} bytes, streamed`,
        );
      }
    }
  },
);

t.test("a range", async (t) => {
  const data = Buffer.from("0123456789");
  writeFileSync(`${folder}/range`, data);
  t.equal(
    hex(await native.digestFile("xxh3-128", `${folder}/range`, 3n, 4n)),
    hex(native.digest("xxh3-128", data.subarray(3, 7))),
  );
});

t.test("what cannot be right is refused with field and limit", async (t) => {
  writeFileSync(`${folder}/short`, "0123456789");
  await t.rejects(native.digestFile("xxh3-128", `${folder}/short`, 5n, 6n), {
    code: "Corrupt",
    field: "bytes",
    value: "6",
    limit: "5",
  });
  await t.rejects(native.digestFile("xxh3-128", `${folder}/none`, 0n, 1n), { code: "NotFound" });
  t.throws(() => native.digestFile("xxh3-128", `${folder}/short`, 2n ** 63n - 1n, 2n), {
    code: "InvalidArgument",
    field: "offset",
  });
  t.throws(() => native.digestFile("xxh3-128", `${folder}/short`, -1n, 2n), { code: "InvalidArgument" });
  t.throws(() => native.digest("md5" as never, Buffer.alloc(1)), { code: "InvalidArgument", value: "md5" });
  t.throws(() => native.digest("sha-256", "text" as never), { code: "InvalidArgument", field: "data" });
});
