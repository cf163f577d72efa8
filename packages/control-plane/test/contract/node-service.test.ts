// NodeService over a real connection: what is refused, and what is told of nodes that do not answer.
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { AnnounceRequestSchema, AnnounceVerdict, NodeService } from "@weightline/proto/node";
import { fromRpcError } from "@weightline/runtime";
import { identityOf } from "./identity.ts";
import { onEveryBackend } from "./under-contract.ts";

onEveryBackend(async (t, { channel }) => {
  t.test("announces that cannot be right name the field, the value and what is allowed", async (t) => {
    const nodes = channel.client(NodeService);
    const good = {
      node: "n",
      epoch: 1n,
      sequence: 1n,
      bootId: "b",
      storeId: "s",
      address: "127.0.0.1:1",
      ttlMs: 1000,
      holdings: {},
    };
    const refused = async (change: object) => {
      try {
        await nodes.announce({ ...good, ...change });
      } catch (error) {
        return fromRpcError(error);
      }
      throw new Error(`${JSON.stringify(change)} was taken`);
    };
    t.match(await refused({ node: "" }), { code: "InvalidArgument", field: "node" });
    t.match(await refused({ node: "x".repeat(254) }), { field: "node" });
    t.match(await refused({ address: "nowhere" }), { field: "announce.address", value: "nowhere" });
    t.match(await refused({ ttlMs: 0 }), { field: "ttl_ms", value: "0" });
    t.match(await refused({ epoch: 0n }), { field: "epoch" });
    t.match(await refused({ holdings: { holdings: [{ holdingId: "../x" }] } }), {
      field: "holdings[0].holding_id",
      value: "../x",
    });
    t.match(
      await refused({
        holdings: {
          holdings: [
            { holdingId: "a".repeat(32), identities: [{ identity: { modelName: "m" }, sourceId: "f".repeat(16) }] },
          ],
        },
      }),
      { field: "holdings[0].identities.source_id" },
    );
  });

  t.test("announces that come together are each taken, and a leave right behind one is the last word", async (t) => {
    const nodes = channel.client(NodeService);
    const announced = (node: string) =>
      nodes.announce({
        node,
        epoch: 1n,
        sequence: 1n,
        bootId: `b-${node}`,
        storeId: `s-${node}`,
        address: "127.0.0.1:1",
        ttlMs: 60_000,
        state: 1,
        holdings: {},
      });
    const names = Array.from({ length: 20 }, (_, i) => `together-${i}`);
    const announces = [...names, "leaver"].map(announced);
    const leave = nodes.leave({ node: "leaver", epoch: 1n, bootId: "b-leaver" });
    for (const { verdict } of await Promise.all(announces)) {
      t.equal(verdict, AnnounceVerdict.ACCEPTED);
    }
    await leave;
    const listed = (await nodes.listNodes({})).nodes.map(({ name }) => name);
    for (const name of names) {
      t.ok(listed.includes(name), name);
    }
    t.notOk(listed.includes("leaver"), "the node that left is gone");
    await Promise.all(names.map((node) => nodes.leave({ node, epoch: 1n, bootId: `b-${node}` })));
    t.same((await nodes.listNodes({})).nodes, []);
  });

  t.test(
    "a stream of announces: each is answered in turn, and one that cannot be right ends it in words",
    async (t) => {
      const nodes = channel.client(NodeService);
      const message = (sequence: number, change: MessageInitShape<typeof AnnounceRequestSchema> = {}) =>
        create(AnnounceRequestSchema, {
          node: "streamer",
          epoch: 1n,
          sequence: BigInt(sequence),
          bootId: "b",
          storeId: "s",
          address: "127.0.0.1:1",
          ttlMs: 60_000,
          state: 1,
          holdingsRevision: 1n,
          ...change,
        });
      async function* announces() {
        yield message(1);
        yield message(2, { holdings: {} });
        yield message(3);
        yield message(4, { ttlMs: 0 });
      }
      const verdicts: AnnounceVerdict[] = [];
      const all = async () => {
        for await (const { verdict, nowMs } of nodes.announceStream(announces())) {
          verdicts.push(verdict);
          t.ok(Math.abs(Number(nowMs) - Date.now()) < 60_000, "with the clock's time");
        }
      };
      t.match(await all().catch(fromRpcError), { code: "InvalidArgument", field: "ttl_ms" });
      t.same(verdicts, [AnnounceVerdict.RESEND, AnnounceVerdict.ACCEPTED, AnnounceVerdict.ACCEPTED]);
      const { nodes: listed } = await nodes.listNodes({});
      t.ok(
        listed.some(({ name }) => name === "streamer"),
        "the end of the stream is not the node's",
      );
      await nodes.leave({ node: "streamer", epoch: 1n, bootId: "b" });
    },
  );

  t.test("fills and transfers of nodes that do not answer are told as such", async (t) => {
    const nodes = channel.client(NodeService);
    await nodes.announce({
      node: "silent",
      epoch: 1n,
      sequence: 1n,
      bootId: "b",
      storeId: "s",
      address: "127.0.0.1:1",
      ttlMs: 60_000,
      state: 1,
      holdings: {},
    });
    const items = [];
    for await (const { node } of nodes.fillNodes({ nodes: ["silent"], identity: identityOf() })) {
      items.push(node);
    }
    t.match(items, [{ node: "silent", errorCode: "Unavailable", error: /cannot be reached/ }]);
    t.same((await nodes.listTransfers({})).silentNodes, ["silent"]);
    await t.rejects(
      async () => {
        for await (const _ of nodes.fillNodes({ nodes: ["nobody"], identity: identityOf() })) {
          // Nothing comes.
        }
      },
      { code: Code.NotFound },
    );
  });
});
