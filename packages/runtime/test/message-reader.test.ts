// A request's bytes become messages, however they are cut.
import t from "tap";
import { createRandom } from "../../../test/support/mutation.ts";
import { MessageReader } from "../src/rpc/message-reader.ts";

const LENGTHS = [0, 1, 4, 5, 100, 65_535, 65_536, 65_537, 131_072, 131_073, 1_100_000];
const PIECE_MAX_BYTES = 16_384;

function framed(bytes: Buffer, isCompressed: boolean): Buffer {
  const prefix = Buffer.from([isCompressed ? 1 : 0, 0, 0, 0, 0]);
  prefix.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([prefix, bytes]);
}

/** Bytes that tell where they are. */
function pattern(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i++) {
    bytes[i] = (i * 31 + (i >> 8) + seed) & 0xff;
  }
  return bytes;
}

t.test("messages of all lengths, cut anywhere, taken at once or late", async (t) => {
  const random = createRandom(7);
  for (let round = 0; round < 60; round++) {
    const messages = Array.from({ length: 1 + random.below(6) }, (_, i) => ({
      isCompressed: random.oneIn(3),
      bytes: pattern(random.pick(LENGTHS), i),
    }));
    const all = Buffer.concat(messages.map(({ bytes, isCompressed }) => framed(bytes, isCompressed)));
    const reader = new MessageReader();
    const seen: Array<{ isCompressed: boolean; bytes: Buffer }> = [];
    const isLate = random.oneIn(2);
    const takeAll = () => {
      for (let message = reader.take(); message !== undefined; message = reader.take()) {
        seen.push(message);
      }
    };
    for (let at = 0; at < all.length; ) {
      const piece = Buffer.from(all.subarray(at, at + 1 + random.below(random.oneIn(4) ? 7 : PIECE_MAX_BYTES)));
      at += piece.length;
      reader.push(piece);
      // It is the connection's, which goes on to use it.
      piece.fill(0xee);
      if (!isLate) {
        takeAll();
      }
    }
    takeAll();
    t.equal(reader.waitingBytes, 0);
    t.equal(seen.length, messages.length);
    t.ok(
      seen.every(({ isCompressed, bytes }, i) => {
        const sent = messages[i];
        return sent !== undefined && isCompressed === sent.isCompressed && bytes.equals(sent.bytes);
      }),
      `round ${round}: ${messages.map(({ bytes }) => bytes.length)}`,
    );
  }
});

t.test("what waits is told: bytes, the next message's length, whether it is here", async (t) => {
  const reader = new MessageReader();
  t.match(reader, { waitingBytes: 0, nextBytes: -1, hasWhole: false });
  reader.push(Buffer.from([0, 0, 1]));
  t.match(reader, { waitingBytes: 3, nextBytes: -1, hasWhole: false });
  t.equal(reader.take(), undefined);
  reader.push(Buffer.from([0, 0]));
  t.match(reader, { waitingBytes: 5, nextBytes: 65_536, hasWhole: false });
  const large = new MessageReader();
  large.push(Buffer.from([0]));
  large.push(Buffer.from([0xff, 0xff, 0xff, 0xff, 1, 2, 3]));
  t.match(large, { waitingBytes: 8, nextBytes: 0xffffffff, hasWhole: false });
});

t.test("who says that a great message comes, and sends little of it, gets little memory", async (t) => {
  const before = process.memoryUsage().arrayBuffers;
  const readers = Array.from({ length: 100 }, () => {
    const reader = new MessageReader();
    reader.push(Buffer.from([0, 6, 0x40, 0, 0, 1]));
    return reader;
  });
  const perReader = (process.memoryUsage().arrayBuffers - before) / readers.length;
  t.ok(perReader < 20_000, `${perReader} bytes for each`);
  t.ok(readers.every(({ nextBytes }) => nextBytes === 0x06400000));
});
