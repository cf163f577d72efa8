// promises.md, limits: what a directory keeps of a source or a worker has 64 KiB, and a worker_id 4096 bytes.
import { identityToJson } from "@weightline/proto";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

const RECORD_BYTES = 65_536;
const WORKER_ID_BYTES = 4096;

/** An identity whose record has so many bytes. */
function identityOfBytes(bytes: number) {
  const make = (text: string) => identityOf({ extraParameters: { notes: text } });
  const empty = Buffer.byteLength(JSON.stringify(identityToJson(make(""))));
  return make("n".repeat(bytes - empty));
}

/** A topology that is kept as so many bytes of JSON, with the accelerator "cuda". */
function topologyOfBytes(bytes: number) {
  const empty = JSON.stringify(["cuda", { rack: "" }]).length;
  return { rack: "r".repeat(bytes - empty) };
}

onEveryBackend(async (t, { p2p }) => {
  const verdict = async (request: object) => {
    const { success, message } = await p2p.publishMetadata({
      identity: identityOf({ revision: "limits" }),
      workerId: "w",
      worker: { accelerator: "cuda" },
      ...request,
    });
    return success ? "published" : message;
  };

  t.test("worker_id", async (t) => {
    for (const bytes of [WORKER_ID_BYTES - 1, WORKER_ID_BYTES]) {
      t.equal(await verdict({ workerId: "w".repeat(bytes) }), "published");
    }
    // Two bytes each.
    t.equal(await verdict({ workerId: "é".repeat(WORKER_ID_BYTES / 2) }), "published");
    t.equal(
      await verdict({ workerId: `${"é".repeat(WORKER_ID_BYTES / 2)}w` }),
      `worker_id of ${WORKER_ID_BYTES + 1} bytes exceeds ${WORKER_ID_BYTES} bytes`,
    );
  });

  t.test("identity", async (t) => {
    for (const bytes of [RECORD_BYTES - 1, RECORD_BYTES]) {
      t.equal(await verdict({ identity: identityOfBytes(bytes) }), "published");
    }
    t.equal(
      await verdict({ identity: identityOfBytes(RECORD_BYTES + 1) }),
      `identity of ${RECORD_BYTES + 1} bytes exceeds ${RECORD_BYTES} bytes`,
    );
  });

  t.test("an identity that is far too long is not even decoded", async (t) => {
    const extraParameters = Object.fromEntries(Array.from({ length: 60_000 }, (_, i) => [`${i}`, ""]));
    t.match(
      await verdict({ identity: identityOf({ extraParameters }) }),
      /^identity of \d{6} bytes exceeds 131072 bytes$/,
    );
  });

  t.test("a worker's accelerator and topology", async (t) => {
    for (const bytes of [RECORD_BYTES - 1, RECORD_BYTES]) {
      t.equal(await verdict({ worker: { accelerator: "cuda", topology: topologyOfBytes(bytes) } }), "published");
    }
    t.equal(
      await verdict({ worker: { accelerator: "cuda", topology: topologyOfBytes(RECORD_BYTES + 1) } }),
      `worker.accelerator and worker.topology of ${RECORD_BYTES + 1} bytes exceeds ${RECORD_BYTES} bytes`,
    );
  });

  t.test("a worker whose topology is far too long is not even decoded", async (t) => {
    const topology = Object.fromEntries(Array.from({ length: 25_000 }, (_, i) => [`${i}`, ""]));
    await t.rejects(verdict({ worker: { topology } }), /at most 131072 are taken/);
  });

  t.test("what is passed on unread has no limit but the message's", async (t) => {
    const nixlMetadata = Buffer.alloc(4 * RECORD_BYTES, 7);
    const worker = { accelerator: "cuda", backendMetadata: { case: "nixlMetadata" as const, value: nixlMetadata } };
    t.equal(await verdict({ workerId: "opaque", worker }), "published");
  });
});
