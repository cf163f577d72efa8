import { create } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import { AnnounceRequestSchema, AnnounceResponseSchema } from "@weightline/proto/node";
import t from "tap";
import { createAnnounceStream } from "../src/services/announce-stream.ts";

/** How many of five announces a stream of this age takes. */
async function taken(ageMs: number): Promise<number> {
  let count = 0;
  const announce = async () => {
    count += 1;
    return create(AnnounceResponseSchema, { knownEpoch: BigInt(count) });
  };
  async function* requests() {
    for (let i = 0; i < 5; i++) {
      yield create(AnnounceRequestSchema, {});
    }
  }
  let replies = 0n;
  for await (const { knownEpoch } of createAnnounceStream(announce, ageMs)(requests(), {} as HandlerContext)) {
    replies += 1n;
    t.equal(knownEpoch, replies, "each has its own reply");
  }
  t.equal(Number(replies), count, "none is read without a reply");
  return count;
}

t.test("a stream goes on while it is young, and ends with a reply once it is old", async (t) => {
  t.equal(await taken(60_000), 5);
  t.equal(await taken(0), 1);
});
