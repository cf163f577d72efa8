// How an agent announces when control planes are replaced, too old, silent, or end its stream: every announce comes to its end, and
// none is read twice while the control plane is there.
import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { type AnnounceRequest, AnnounceRequestSchema, AnnounceVerdict, NodeService } from "@weightline/proto/node";
import { createGrpcChannel, createGrpcServer, route } from "@weightline/runtime";
import t, { type Test } from "tap";
import { createAnnouncer } from "../src/directory/announcer.ts";

const accepted = { verdict: AnnounceVerdict.ACCEPTED };
type Implementation = Parameters<typeof route<typeof NodeService>>[1];

async function serve(t: Test, implementation: Implementation, port = 0) {
  const server = await createGrpcServer({
    routes: [route(NodeService, implementation)],
    bind: ["127.0.0.1"],
    port,
    portFlag: "--port",
  });
  t.teardown(() => server.stop(0));
  return server;
}

function announcer(t: Test, port: number, replyTimeoutMs?: number) {
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port }] });
  const made = createAnnouncer(channel.client(NodeService), replyTimeoutMs);
  t.teardown(() => {
    made.close();
    channel.close();
  });
  return made;
}

const message = (sequence: number) => create(AnnounceRequestSchema, { node: "n", sequence: BigInt(sequence) });

/** Takes `perStream` announces from each stream, then ends it. */
function streaming(read: number[], streams: { count: number }, perStream = Number.POSITIVE_INFINITY): Implementation {
  return {
    async *announceStream(requests: AsyncIterable<AnnounceRequest>) {
      streams.count += 1;
      let left = perStream;
      for await (const { sequence } of requests) {
        read.push(Number(sequence));
        yield accepted;
        left -= 1;
        if (left === 0) {
          return;
        }
      }
    },
  };
}

t.test("one stream carries all announces", async (t) => {
  const read: number[] = [];
  const streams = { count: 0 };
  const { port } = await serve(t, streaming(read, streams));
  const one = announcer(t, port);
  for (let i = 1; i <= 50; i++) {
    t.equal((await one.announce(message(i))).verdict, AnnounceVerdict.ACCEPTED);
  }
  t.same(
    read,
    Array.from({ length: 50 }, (_, i) => i + 1),
  );
  t.equal(streams.count, 1);
});

t.test("a stream that the control plane ends after a reply is opened again", async (t) => {
  const read: number[] = [];
  const streams = { count: 0 };
  const { port } = await serve(t, streaming(read, streams, 3));
  const one = announcer(t, port);
  for (let i = 1; i <= 10; i++) {
    t.equal((await one.announce(message(i))).verdict, AnnounceVerdict.ACCEPTED);
  }
  t.same(read, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  t.equal(streams.count, 4);
});

t.test("the control plane is replaced between two announces: the second does not fail", async (t) => {
  const read: number[] = [];
  const streams = { count: 0 };
  const first = await serve(t, streaming(read, streams));
  const one = announcer(t, first.port);
  await one.announce(message(1));
  await first.stop(0);
  await serve(t, streaming(read, streams), first.port);
  t.equal((await one.announce(message(2))).verdict, AnnounceVerdict.ACCEPTED);
  t.same(read, [1, 2]);
  t.equal(streams.count, 2);
});

t.test("nobody is there: the announce fails, and the next finds who is there by then", async (t) => {
  const gone = await serve(t, {});
  await gone.stop(0);
  const one = announcer(t, gone.port);
  await t.rejects(one.announce(message(1)), { code: Code.Unavailable });
  const read: number[] = [];
  await serve(t, streaming(read, { count: 0 }), gone.port);
  for (let sequence = 2; read.length === 0; sequence++) {
    await one.announce(message(sequence)).catch(() => undefined);
  }
  t.equal(read.length, 1);
});

t.test("a control plane without streams, and one that ends them unread, get single calls", async (t) => {
  const single: number[] = [];
  const announce = async ({ sequence }: AnnounceRequest) => {
    single.push(Number(sequence));
    return accepted;
  };
  async function* announceStream() {}
  for (const implementation of [{ announce }, { announce, announceStream }]) {
    single.length = 0;
    const { port } = await serve(t, implementation);
    const one = announcer(t, port);
    await one.announce(message(1));
    await one.announce(message(2));
    t.same(single, [1, 2]);
  }
});

t.test("a refusal is told as it is, and the next announce is made on a new stream", async (t) => {
  const streams = { count: 0 };
  const { port } = await serve(t, {
    async *announceStream(requests: AsyncIterable<AnnounceRequest>) {
      streams.count += 1;
      for await (const { sequence } of requests) {
        if (sequence === 2n) {
          throw Object.assign(new Error("not this one"), { code: "EPERM" });
        }
        yield accepted;
      }
    },
  });
  const one = announcer(t, port);
  await one.announce(message(1));
  await t.rejects(one.announce(message(2)), { code: Code.Internal });
  t.equal((await one.announce(message(3))).verdict, AnnounceVerdict.ACCEPTED);
  t.equal(streams.count, 2);
});

t.test("a control plane that says nothing is given up in time", async (t) => {
  const { port } = await serve(t, {
    async *announceStream(_: unknown, { signal }) {
      yield* [];
      await new Promise((resolve) => signal.addEventListener("abort", resolve));
    },
  });
  await t.rejects(announcer(t, port, 200).announce(message(1)), {
    code: Code.DeadlineExceeded,
    rawMessage: "announces are not answered within 200 ms",
  });
});
