// HPACK (RFC 7541) as a server needs it: against the RFC's examples, against Node's own HTTP/2, and against what is none.
import { once } from "node:events";
import {
  type ClientHttp2Session,
  connect,
  type OutgoingHttpHeaders,
  type SecureClientSessionOptions,
  sensitiveHeaders,
} from "node:http2";
import { type AddressInfo, createServer, type Socket } from "node:net";
import t, { type Test } from "tap";
import { HeaderBlockError, HeaderDecoder, type HeaderLimits, type HeaderList } from "../src/http2/header-decoder.ts";
import { encodeHeaders } from "../src/http2/header-encoder.ts";
import { decodeHuffman } from "../src/http2/huffman.ts";

type Pair = readonly [name: string, value: string];

const OVERHEAD_BYTES = 32;
const FIRST_DYNAMIC_INDEX = 62;
const END_OF_STRING = 256;
const LIMITS: HeaderLimits = { tableBytes: 4096, listBytes: 1_000_000, pairsCount: 10_000 };

const decoderOf = (limits: Partial<HeaderLimits> = {}) => new HeaderDecoder({ ...LIMITS, ...limits });
const hex = (text: string) => Buffer.from(text.replaceAll(/\s/g, ""), "hex");
const latin1 = (text: string) => Buffer.from(text, "latin1");
const bytesOf = (pairs: readonly Pair[]) =>
  pairs.reduce((sum, [name, value]) => sum + name.length + value.length + OVERHEAD_BYTES, 0);

function pairsOf({ fields }: HeaderList): Pair[] {
  const pairs: Pair[] = [];
  for (let at = 0; at < fields.length; at += 2) {
    pairs.push([fields[at] as string, fields[at + 1] as string]);
  }
  return pairs;
}

/** An integer in the low bits of its first octet (RFC 7541, section 5.1), with as many octets as it needs. */
function integer(mark: number, mask: number, value: number): Buffer {
  if (value < mask) {
    return Buffer.from([mark | value]);
  }
  const octets = [mark | mask];
  let rest = value - mask;
  for (; rest >= 128; rest = Math.floor(rest / 128)) {
    octets.push(128 + (rest % 128));
  }
  return Buffer.from([...octets, rest]);
}
const indexed = (index: number) => integer(0x80, 0x7f, index);
const sizeUpdate = (bytes: number) => integer(0x20, 0x1f, bytes);
const plain = (text: string) => Buffer.concat([integer(0, 0x7f, text.length), latin1(text)]);
/** A literal with a literal name. */
const literal = (mark: number, [name, value]: Pair) => Buffer.concat([Buffer.from([mark]), plain(name), plain(value)]);
const added = (name: string, value: string) => literal(0x40, [name, value]);

/** What the dynamic table has, the newest first. */
function tableOf(decoder: HeaderDecoder): Pair[] {
  const pairs: Pair[] = [];
  for (;;) {
    try {
      pairs.push(...pairsOf(decoder.decode(indexed(FIRST_DYNAMIC_INDEX + pairs.length))));
    } catch {
      return pairs;
    }
  }
}

/** Numbers from 0 to `below` (excluded), the same ones in each run. */
function createRandom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** RFC 7541, appendix B: code and its bits, for each octet and for the end of a string. */
const CODES = `
  1ff8/13 7fffd8/23 fffffe2/28 fffffe3/28 fffffe4/28 fffffe5/28 fffffe6/28 fffffe7/28 fffffe8/28 ffffea/24
  3ffffffc/30 fffffe9/28 fffffea/28 3ffffffd/30 fffffeb/28 fffffec/28 fffffed/28 fffffee/28 fffffef/28 ffffff0/28
  ffffff1/28 ffffff2/28 3ffffffe/30 ffffff3/28 ffffff4/28 ffffff5/28 ffffff6/28 ffffff7/28 ffffff8/28 ffffff9/28
  ffffffa/28 ffffffb/28 14/6 3f8/10 3f9/10 ffa/12 1ff9/13 15/6 f8/8 7fa/11 3fa/10 3fb/10 f9/8 7fb/11 fa/8 16/6
  17/6 18/6 0/5 1/5 2/5 19/6 1a/6 1b/6 1c/6 1d/6 1e/6 1f/6 5c/7 fb/8 7ffc/15 20/6 ffb/12 3fc/10 1ffa/13 21/6 5d/7
  5e/7 5f/7 60/7 61/7 62/7 63/7 64/7 65/7 66/7 67/7 68/7 69/7 6a/7 6b/7 6c/7 6d/7 6e/7 6f/7 70/7 71/7 72/7 fc/8
  73/7 fd/8 1ffb/13 7fff0/19 1ffc/13 3ffc/14 22/6 7ffd/15 3/5 23/6 4/5 24/6 5/5 25/6 26/6 27/6 6/5 74/7 75/7 28/6
  29/6 2a/6 7/5 2b/6 76/7 2c/6 8/5 9/5 2d/6 77/7 78/7 79/7 7a/7 7b/7 7ffe/15 7fc/11 3ffd/14 1ffd/13 ffffffc/28
  fffe6/20 3fffd2/22 fffe7/20 fffe8/20 3fffd3/22 3fffd4/22 3fffd5/22 7fffd9/23 3fffd6/22 7fffda/23 7fffdb/23
  7fffdc/23 7fffdd/23 7fffde/23 ffffeb/24 7fffdf/23 ffffec/24 ffffed/24 3fffd7/22 7fffe0/23 ffffee/24 7fffe1/23
  7fffe2/23 7fffe3/23 7fffe4/23 1fffdc/21 3fffd8/22 7fffe5/23 3fffd9/22 7fffe6/23 7fffe7/23 ffffef/24 3fffda/22
  1fffdd/21 fffe9/20 3fffdb/22 3fffdc/22 7fffe8/23 7fffe9/23 1fffde/21 7fffea/23 3fffdd/22 3fffde/22 fffff0/24
  1fffdf/21 3fffdf/22 7fffeb/23 7fffec/23 1fffe0/21 1fffe1/21 3fffe0/22 1fffe2/21 7fffed/23 3fffe1/22 7fffee/23
  7fffef/23 fffea/20 3fffe2/22 3fffe3/22 3fffe4/22 7ffff0/23 3fffe5/22 3fffe6/22 7ffff1/23 3ffffe0/26 3ffffe1/26
  fffeb/20 7fff1/19 3fffe7/22 7ffff2/23 3fffe8/22 1ffffec/25 3ffffe2/26 3ffffe3/26 3ffffe4/26 7ffffde/27
  7ffffdf/27 3ffffe5/26 fffff1/24 1ffffed/25 7fff2/19 1fffe3/21 3ffffe6/26 7ffffe0/27 7ffffe1/27 3ffffe7/26
  7ffffe2/27 fffff2/24 1fffe4/21 1fffe5/21 3ffffe8/26 3ffffe9/26 ffffffd/28 7ffffe3/27 7ffffe4/27 7ffffe5/27
  fffec/20 fffff3/24 fffed/20 1fffe6/21 3fffe9/22 1fffe7/21 1fffe8/21 7ffff3/23 3fffea/22 3fffeb/22 1ffffee/25
  1ffffef/25 fffff4/24 fffff5/24 3ffffea/26 7ffff4/23 3ffffeb/26 7ffffe6/27 3ffffec/26 3ffffed/26 7ffffe7/27
  7ffffe8/27 7ffffe9/27 7ffffea/27 7ffffeb/27 ffffffe/28 7ffffec/27 7ffffed/27 7ffffee/27 7ffffef/27 7fffff0/27
  3ffffee/26 3fffffff/30
`
  .trim()
  .split(/\s+/)
  .map((entry) => {
    const [code, bits] = entry.split("/") as [string, string];
    return Number.parseInt(code, 16).toString(2).padStart(Number(bits), "0");
  });

function octetsOf(bits: string): Buffer {
  const padded = bits.padEnd(Math.ceil(bits.length / 8) * 8, "1");
  return Buffer.from((padded.match(/.{8}/g) ?? []).map((octet) => Number.parseInt(octet, 2)));
}
const bitsOf = (text: string) => Array.from(latin1(text), (octet) => CODES[octet]).join("");
const huffman = (text: string) => octetsOf(bitsOf(text));
const coded = (octets: Buffer) => Buffer.concat([integer(0x80, 0x7f, octets.length), octets]);
const decodedHuffman = (octets: Buffer) => decodeHuffman(octets, 0, octets.length);

const FOUND_AT_EXAMPLE = "https://www.example.com";
const COOKIE = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
const AT_21 = "Mon, 21 Oct 2013 20:13:21 GMT";
const AT_22 = "Mon, 21 Oct 2013 20:13:22 GMT";

interface Example {
  readonly block: string;
  readonly fields: readonly Pair[];
  /** The dynamic table after it, and its size as the RFC gives it. */
  readonly table: readonly Pair[];
  readonly tableBytes: number;
}

const REQUESTS: ReadonlyArray<Omit<Example, "block">> = [
  {
    fields: [
      [":method", "GET"],
      [":scheme", "http"],
      [":path", "/"],
      [":authority", "www.example.com"],
    ],
    table: [[":authority", "www.example.com"]],
    tableBytes: 57,
  },
  {
    fields: [
      [":method", "GET"],
      [":scheme", "http"],
      [":path", "/"],
      [":authority", "www.example.com"],
      ["cache-control", "no-cache"],
    ],
    table: [
      ["cache-control", "no-cache"],
      [":authority", "www.example.com"],
    ],
    tableBytes: 110,
  },
  {
    fields: [
      [":method", "GET"],
      [":scheme", "https"],
      [":path", "/index.html"],
      [":authority", "www.example.com"],
      ["custom-key", "custom-value"],
    ],
    table: [
      ["custom-key", "custom-value"],
      ["cache-control", "no-cache"],
      [":authority", "www.example.com"],
    ],
    tableBytes: 164,
  },
];

const RESPONSES: ReadonlyArray<Omit<Example, "block">> = [
  {
    fields: [
      [":status", "302"],
      ["cache-control", "private"],
      ["date", AT_21],
      ["location", FOUND_AT_EXAMPLE],
    ],
    table: [
      ["location", FOUND_AT_EXAMPLE],
      ["date", AT_21],
      ["cache-control", "private"],
      [":status", "302"],
    ],
    tableBytes: 222,
  },
  {
    fields: [
      [":status", "307"],
      ["cache-control", "private"],
      ["date", AT_21],
      ["location", FOUND_AT_EXAMPLE],
    ],
    table: [
      [":status", "307"],
      ["location", FOUND_AT_EXAMPLE],
      ["date", AT_21],
      ["cache-control", "private"],
    ],
    tableBytes: 222,
  },
  {
    fields: [
      [":status", "200"],
      ["cache-control", "private"],
      ["date", AT_22],
      ["location", FOUND_AT_EXAMPLE],
      ["content-encoding", "gzip"],
      ["set-cookie", COOKIE],
    ],
    table: [
      ["set-cookie", COOKIE],
      ["content-encoding", "gzip"],
      ["date", AT_22],
    ],
    tableBytes: 215,
  },
];

const SEQUENCES: Record<string, { tableBytes: number; lists: typeof REQUESTS; blocks: readonly string[] }> = {
  "C.3": {
    tableBytes: 4096,
    lists: REQUESTS,
    blocks: [
      "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
      "8286 84be 5808 6e6f 2d63 6163 6865",
      "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ],
  },
  "C.4": {
    tableBytes: 4096,
    lists: REQUESTS,
    blocks: [
      "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
      "8286 84be 5886 a8eb 1064 9cbf",
      "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ],
  },
  "C.5": {
    tableBytes: 256,
    lists: RESPONSES,
    blocks: [
      `4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
       474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d`,
      "4803 3330 37c1 c0bf",
      `88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738
       666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33
       3630 303b 2076 6572 7369 6f6e 3d31`,
    ],
  },
  "C.6": {
    tableBytes: 256,
    lists: RESPONSES,
    blocks: [
      `4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
       63c7 8f0b 97c8 e9ae 82ae 43d3`,
      "4883 640e ffc1 c0bf",
      `88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
       b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07`,
    ],
  },
};

t.test("the RFC's single fields (appendix C.2)", async (t) => {
  const examples: Array<[name: string, block: string, pair: Pair, table: Pair[]]> = [
    [
      "with indexing",
      "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
      ["custom-key", "custom-header"],
      [["custom-key", "custom-header"]],
    ],
    ["without indexing", "040c 2f73 616d 706c 652f 7061 7468", [":path", "/sample/path"], []],
    ["never indexed", "1008 7061 7373 776f 7264 0673 6563 7265 74", ["password", "secret"], []],
    ["indexed", "82", [":method", "GET"], []],
  ];
  for (const [name, block, pair, table] of examples) {
    const decoder = decoderOf();
    t.strictSame(pairsOf(decoder.decode(hex(block))), [pair], name);
    t.strictSame(tableOf(decoder), table, `${name}: the table after it`);
  }
});

for (const [section, { tableBytes, lists, blocks }] of Object.entries(SEQUENCES)) {
  t.test(`the RFC's lists (appendix ${section})`, async (t) => {
    const decoder = decoderOf({ tableBytes });
    for (const [i, { fields, table, tableBytes: bytes }] of lists.entries()) {
      t.strictSame(pairsOf(decoder.decode(hex(blocks[i] as string))), fields);
      t.strictSame(tableOf(decoder), table);
      t.equal(bytesOf(tableOf(decoder)), bytes);
    }
  });
}

t.test("what is malformed is refused", async (t) => {
  const oneEntry = added("a", "b");
  const value = hex("04");
  const faults: Record<string, Record<string, Buffer>> = {
    "an index is 0": { "an index": hex("80") },
    "an index is beyond the tables": {
      "one beyond the static table": indexed(FIRST_DYNAMIC_INDEX),
      "one beyond the dynamic table": Buffer.concat([oneEntry, indexed(FIRST_DYNAMIC_INDEX + 1)]),
      "the largest integer": indexed(2 ** 28),
      "a name's": Buffer.concat([integer(0x40, 0x3f, FIRST_DYNAMIC_INDEX), plain("v")]),
      "a name's, not to index": Buffer.concat([integer(0, 0xf, FIRST_DYNAMIC_INDEX), plain("v")]),
      "a name's, never to index": Buffer.concat([integer(0x10, 0xf, FIRST_DYNAMIC_INDEX), plain("v")]),
    },
    "an integer is too large": {
      "an index above 2^28": indexed(2 ** 28 + 1),
      "a name's index": integer(0x40, 0x3f, 2 ** 28 + 1),
      "a length": Buffer.concat([hex("00"), integer(0, 0x7f, 2 ** 28 + 1)]),
      "a table size": sizeUpdate(2 ** 28 + 1),
      "one of more than 5 continuation octets": hex("3f 80 80 80 80 80 00"),
      "one that never ends": Buffer.alloc(100_000, 0xff),
      "one of 32 bits": hex("ff ff ff ff ff 0f"),
      "one of 35 bits": hex("3f ff ff ff ff 7f"),
    },
    "an integer is cut off": {
      "an index": hex("ff"),
      "an index, between octets": hex("ff 80"),
      "a name's index": hex("7f"),
      "a table size": hex("3f"),
      "a length": hex("04 7f"),
    },
    "a string is missing": {
      "a name": hex("40"),
      "a value": hex("40 01 61"),
      "a value of an indexed name": hex("44"),
      "a value not to index": hex("04"),
      "a value never to index": hex("14"),
    },
    "a string is cut off": {
      "a name": hex("40 05 61 62"),
      "a value": hex("44 03 61 62"),
      "a value of Huffman's code": hex("44 83 61 62"),
      "one that would be far longer than the block": Buffer.concat([value, integer(0, 0x7f, 2 ** 28)]),
      "one of Huffman's code that would be": Buffer.concat([value, integer(0x80, 0x7f, 2 ** 28)]),
    },
    "a string is not of Huffman's code": {
      "the end of a string": Buffer.concat([value, coded(octetsOf(CODES[END_OF_STRING] as string))]),
      "the end of a string within one": Buffer.concat([
        value,
        coded(octetsOf(`${bitsOf("abc")}${CODES[END_OF_STRING]}${bitsOf("abc")}`)),
      ]),
      "padding of 8 bits": Buffer.concat([value, coded(hex("ff"))]),
      "padding of 11 bits": Buffer.concat([value, coded(Buffer.concat([huffman("0"), hex("ff")]))]),
      "padding of zeros": Buffer.concat([value, coded(octetsOf(`${bitsOf("0")}000`))]),
      "padding with a zero": Buffer.concat([value, coded(octetsOf(`${bitsOf("0")}110`))]),
      "a code that is cut off": Buffer.concat([value, coded(octetsOf((CODES[0] as string).slice(0, 8)))]),
      "a name": Buffer.concat([hex("00"), coded(hex("ff")), plain("v")]),
    },
    "a table size is above the limit": {
      "by one": sizeUpdate(4097),
      "by far": sizeUpdate(2 ** 28),
    },
    "a table size is not at the block's start": {
      "after a field": Buffer.concat([hex("82"), sizeUpdate(100)]),
      "after another and a field": Buffer.concat([sizeUpdate(100), oneEntry, sizeUpdate(100)]),
    },
  };
  for (const [message, blocks] of Object.entries(faults)) {
    for (const [name, block] of Object.entries(blocks)) {
      const refused = { name: "HeaderBlockError", message };
      t.throws(() => decoderOf().decode(block), refused, `${message}: ${name}`);
      t.throws(() => decoderOf({ listBytes: 0 }).decode(block), refused, `${message}, in a list too large: ${name}`);
      t.throws(() => decoderOf().decode(block), HeaderBlockError);
    }
  }
});

t.test("what is unusual, but right, is taken", async (t) => {
  const right: Record<string, [block: Buffer, pairs: Pair[]]> = {
    "no field": [Buffer.alloc(0), []],
    "an empty name and value": [hex("00 00 00"), [["", ""]]],
    "an empty string of Huffman's code": [hex("04 80"), [[":path", ""]]],
    "a name's index in two octets": [Buffer.concat([hex("0f 2b"), plain("agent")]), [["user-agent", "agent"]]],
    "an integer in more octets than it needs": [hex("3f 80 80 80 80 00 82"), [[":method", "GET"]]],
    "two table sizes": [Buffer.concat([sizeUpdate(0), sizeUpdate(4096), hex("82")]), [[":method", "GET"]]],
    "a table size alone": [sizeUpdate(4096), []],
  };
  for (const [name, [block, pairs]] of Object.entries(right)) {
    t.strictSame(decoderOf().decode(block), { fields: pairs.flat(), tooLarge: false }, name);
  }
});

t.test("all octets, and their Huffman code", async (t) => {
  const all = Buffer.from([...Array(256).keys()]).toString("latin1");
  for (const text of [...all, all, "", ...Array.from(all, (one) => `${one}a${one}`)]) {
    t.ok(decodedHuffman(huffman(text)) === text, JSON.stringify(text));
  }
  const random = createRandom(1);
  for (let length = 0; length < 200; length++) {
    const text = Array.from({ length }, () => all[random(256)]).join("");
    t.ok(decodedHuffman(huffman(text)) === text, `${length} random octets`);
    const padded = Buffer.concat([huffman(text), hex("ff")]);
    t.equal(decodedHuffman(padded), undefined, "and an octet of padding more");
  }
  for (const length of [2558, 2559, 2560, 4095, 4096, 4097, 6552, 6553, 6554, 100_000]) {
    const text = "0aZ".repeat(length).slice(0, length);
    t.ok(decodedHuffman(huffman(text)) === text, `${length} octets`);
    const shortest = "0".repeat(length);
    t.ok(decodedHuffman(huffman(shortest)) === shortest, `${length} octets of the shortest code`);
  }
  t.strictSame(pairsOf(decoderOf().decode(literal(0, [all, all]))), [[all, all]], "and without it");
});

t.test("a list may have so many bytes and pairs", async (t) => {
  const pairs: Pair[] = [
    [":method", "GET"],
    ["a", "1"],
    ["bb", "22"],
  ];
  const block = Buffer.concat([hex("82"), added("a", "1"), literal(0, ["bb", "22"])]);
  const listBytes = bytesOf(pairs);
  const cases: Array<[limits: Partial<HeaderLimits>, count: number]> = [
    [{ listBytes: listBytes + 1 }, 3],
    [{ listBytes }, 3],
    [{ listBytes: listBytes - 1 }, 2],
    [{ listBytes: bytesOf(pairs.slice(0, 1)) }, 1],
    [{ listBytes: 0 }, 0],
    [{ pairsCount: 4 }, 3],
    [{ pairsCount: 3 }, 3],
    [{ pairsCount: 2 }, 2],
    [{ pairsCount: 0 }, 0],
  ];
  for (const [limits, count] of cases) {
    const expected = { fields: pairs.slice(0, count).flat(), tooLarge: count < pairs.length };
    const decoder = decoderOf(limits);
    t.strictSame(decoder.decode(block), expected, JSON.stringify(limits));
    t.strictSame(decoder.decode(block), expected, "each list is counted by itself");
  }
});

t.test("nothing more is collected after the first that is too much, though it were small", async (t) => {
  const decoder = decoderOf({ listBytes: 100 });
  const block = Buffer.concat([hex("82"), added("long", "x".repeat(100)), added("a", "b"), hex("84")]);
  t.strictSame(decoder.decode(block), { fields: [":method", "GET"], tooLarge: true });
  t.strictSame(
    decoder.decode(indexed(FIRST_DYNAMIC_INDEX)),
    { fields: ["a", "b"], tooLarge: false },
    "the table has it",
  );
  t.strictSame(decoder.decode(indexed(FIRST_DYNAMIC_INDEX + 1)), { fields: [], tooLarge: true }, "and the large one");
});

t.test("few bytes do not become many", async (t) => {
  const decoder = decoderOf({ listBytes: 16_384, pairsCount: 100 });
  decoder.decode(added("x", "y".repeat(4000)));
  const { fields, tooLarge } = decoder.decode(Buffer.alloc(100_000, indexed(FIRST_DYNAMIC_INDEX)));
  t.ok(tooLarge);
  t.equal(fields.length, 8, "four of 4033 bytes");
  const small = decoder.decode(Buffer.alloc(100_000, hex("82")));
  t.equal(small.fields.length, 200, "a hundred pairs");
});

t.test("the dynamic table keeps to its size", async (t) => {
  const entry = (i: number): Pair => [`name-${i}`, `value-${i}`];
  const entriesBytes = (from: number, to: number) =>
    bytesOf(Array.from({ length: to - from }, (_, i) => entry(from + i)));
  for (const tableBytes of [0, 31, 32, 46, 100, 256, 1000, 4096]) {
    const decoder = decoderOf({ tableBytes });
    const kept: Pair[] = [];
    for (let i = 0; i < 300; i++) {
      decoder.decode(added(...entry(i)));
      kept.unshift(entry(i));
      while (bytesOf(kept) > tableBytes) {
        kept.pop();
      }
      if (i % 50 < 3) {
        t.strictSame(tableOf(decoder), kept, `${tableBytes} bytes, after ${i}`);
      }
    }
    decoder.decode(added("x", "y".repeat(Math.max(0, tableBytes - 33))));
    t.equal(tableOf(decoder).length, tableBytes < 33 ? 0 : 1, "one that fills it");
    decoder.decode(added("x", "y".repeat(Math.max(0, tableBytes - 32))));
    t.equal(tableOf(decoder).length, 0, "one that is too large for it");
    decoder.decode(sizeUpdate(tableBytes));
    t.throws(() => decoderOf({ tableBytes }).decode(sizeUpdate(tableBytes + 1)), HeaderBlockError);
  }

  const decoder = decoderOf();
  for (let i = 0; i < 10; i++) {
    decoder.decode(added(...entry(i)));
  }
  decoder.decode(sizeUpdate(entriesBytes(7, 10)));
  t.strictSame(tableOf(decoder), [entry(9), entry(8), entry(7)], "a smaller size drops the oldest");
  decoder.decode(sizeUpdate(4096));
  t.equal(tableOf(decoder).length, 3, "and a larger one does not bring them back");
  decoder.decode(Buffer.concat([sizeUpdate(0), sizeUpdate(4096)]));
  t.equal(tableOf(decoder).length, 0);

  const wide = decoderOf({ tableBytes: 65_536 });
  const large = (i: number): Pair => [`name-${i}`, "x".repeat(1000)];
  for (let i = 0; i < 10; i++) {
    wide.decode(added(...large(i)));
  }
  t.equal(tableOf(wide).length, 3, "a client has 4096 bytes until it says that it has more");
  wide.decode(sizeUpdate(65_536));
  for (let i = 0; i < 100; i++) {
    wide.decode(added(...large(i)));
  }
  t.equal(tableOf(wide).length, 63);
});

t.test("a name in the table outlives its entry", async (t) => {
  const decoder = decoderOf({ tableBytes: 64 });
  decoder.decode(added("some-name", "1"));
  const block = Buffer.concat([integer(0x40, 0x3f, FIRST_DYNAMIC_INDEX), plain("x".repeat(20))]);
  t.strictSame(pairsOf(decoder.decode(block)), [["some-name", "x".repeat(20)]]);
  t.strictSame(tableOf(decoder), [["some-name", "x".repeat(20)]], "it took the place of the one that named it");
});

const FRAME_HEAD_BYTES = 9;
const FRAME_MAX_BYTES = 16_384;
const PREFACE_BYTES = 24;
const FRAME = { headers: 1, settings: 4, ping: 6, continuation: 9 };
const FLAG = { ack: 1, endStream: 1, endHeaders: 4, padded: 8, priority: 32 };
const HEADER_TABLE_SIZE = 1;

function frame(type: number, flags: number, stream: number, payload: Uint8Array = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(FRAME_HEAD_BYTES);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A reply of headers alone, in as many frames as it needs. */
function replyFrames(stream: number, block: Buffer): Buffer {
  const frames: Buffer[] = [];
  for (let at = 0; at === 0 || at < block.length; at += FRAME_MAX_BYTES) {
    const isLast = at + FRAME_MAX_BYTES >= block.length;
    const type = at === 0 ? FRAME.headers : FRAME.continuation;
    const flags = (at === 0 ? FLAG.endStream : 0) | (isLast ? FLAG.endHeaders : 0);
    frames.push(frame(type, flags, stream, block.subarray(at, at + FRAME_MAX_BYTES)));
  }
  return Buffer.concat(frames);
}

function tableSizeFrame(bytes: number): Buffer {
  const setting = Buffer.alloc(6);
  setting.writeUInt16BE(HEADER_TABLE_SIZE, 0);
  setting.writeUInt32BE(bytes, 2);
  return frame(FRAME.settings, 0, 0, setting);
}

/** HTTP/2 of the least kind: answers each header block that comes. */
class RawPeer {
  readonly #socket: Socket;
  readonly #answer: (block: Buffer) => Buffer;
  #bytes = Buffer.alloc(0);
  #greeted = false;
  #pieces: Buffer[] = [];

  constructor(socket: Socket, answer: (block: Buffer) => Buffer) {
    this.#socket = socket;
    this.#answer = answer;
    socket.on("error", () => socket.destroy());
    socket.on("data", (piece: Buffer) => this.#take(piece));
  }

  #take(piece: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, piece]);
    if (!this.#greeted && this.#bytes.length >= PREFACE_BYTES) {
      this.#greeted = true;
      this.#bytes = this.#bytes.subarray(PREFACE_BYTES);
    }
    while (this.#greeted && this.#bytes.length >= FRAME_HEAD_BYTES) {
      const end = FRAME_HEAD_BYTES + this.#bytes.readUIntBE(0, 3);
      if (this.#bytes.length < end) {
        return;
      }
      const [type, flags] = [this.#bytes[3] as number, this.#bytes[4] as number];
      this.#takeFrame(type, flags, this.#bytes.readUInt32BE(5), this.#bytes.subarray(FRAME_HEAD_BYTES, end));
      this.#bytes = this.#bytes.subarray(end);
    }
  }

  #takeFrame(type: number, flags: number, stream: number, payload: Buffer): void {
    if ((type === FRAME.settings || type === FRAME.ping) && (flags & FLAG.ack) === 0) {
      this.#socket.write(frame(type, FLAG.ack, 0, type === FRAME.ping ? payload : undefined));
    }
    if (type !== FRAME.headers && type !== FRAME.continuation) {
      return;
    }
    const isPadded = type === FRAME.headers && (flags & FLAG.padded) !== 0;
    const hasPriority = type === FRAME.headers && (flags & FLAG.priority) !== 0;
    const from = (isPadded ? 1 : 0) + (hasPriority ? 5 : 0);
    this.#pieces.push(payload.subarray(from, payload.length - (isPadded ? (payload[0] as number) : 0)));
    if ((flags & FLAG.endHeaders) !== 0) {
      this.#socket.write(replyFrames(stream, this.#answer(Buffer.concat(this.#pieces.splice(0)))));
    }
  }
}

interface Link {
  readonly client: ClientHttp2Session;
  /** The server's side, to send frames on. */
  readonly socket: Socket;
}

/** A client of Node's that is connected to a raw peer; ends with the test. */
async function link(
  t: Test,
  options: SecureClientSessionOptions,
  first: Buffer,
  answer: (block: Buffer) => Buffer,
): Promise<Link> {
  const server = createServer();
  t.teardown(() => server.close());
  await once(server.listen(0, "127.0.0.1"), "listening");
  const client = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, options);
  t.teardown(() => client.destroy());
  const settled = once(client, "remoteSettings");
  const [socket] = (await once(server, "connection")) as [Socket];
  t.teardown(() => socket.destroy());
  new RawPeer(socket, answer);
  socket.write(first);
  await settled;
  return { client, socket };
}

/** What the client takes for the reply's headers, as they came. */
async function replyTo(client: ClientHttp2Session, headers: OutgoingHttpHeaders): Promise<string[]> {
  const request = client.request(headers).resume();
  const [, , raw] = (await once(request, "response")) as [unknown, unknown, string[]];
  await once(request, "close");
  return raw;
}

const TEXT = "abcdefghijklmnopqrstuvwxyz0123456789-_./:, ";
const VISIBLE = Buffer.from([...Array(256).keys()].filter((octet) => octet > 0x20 && octet !== 0x7f)).toString(
  "latin1",
);

function textOf(random: (below: number) => number, length: number, of: string): string {
  return Array.from({ length }, () => of[random(of.length)])
    .join("")
    .trim();
}

function randomValue(random: (below: number) => number): string {
  const kind = random(20);
  if (kind === 0) {
    return "";
  }
  if (kind === 1) {
    return textOf(random, 3000 + random(15_000), random(2) === 0 ? TEXT : VISIBLE);
  }
  if (kind < 5) {
    return textOf(random, random(300), TEXT);
  }
  if (kind < 9) {
    return textOf(random, random(140), VISIBLE);
  }
  // Few, so that they come again.
  return `value-${random(12)}`;
}

/** With few names, and few values, of which many come again. */
function randomPairs(random: (below: number) => number): Pair[] {
  const pairs: Pair[] = [];
  for (const name of ["user-agent", "accept", "grpc-timeout", "authorization"]) {
    if (random(2) === 0) {
      pairs.push([name, randomValue(random)]);
    }
  }
  for (let count = random(12); count > 0; count--) {
    pairs.push([
      random(10) === 0 ? `x-${textOf(random, 200, TEXT.slice(0, 36))}` : `x-${random(20)}`,
      randomValue(random),
    ]);
  }
  // Too many long ones are more than Node's client sends.
  return bytesOf(pairs) > 50_000 ? pairs.slice(0, 3) : pairs;
}

/** For Node: values of one name are an array. */
function headersOf(pairs: readonly Pair[]): Record<string, string[]> {
  const headers: Record<string, string[]> = {};
  for (const [name, value] of pairs) {
    headers[name] = [...(headers[name] ?? []), value];
  }
  return headers;
}

/** Pairs as Node puts them: those of one name together. */
const grouped = (pairs: readonly Pair[]) =>
  Object.entries(headersOf(pairs)).flatMap(([name, values]) => values.map((value): Pair => [name, value]));

const CONNECTIONS: Record<string, { tableBytes: number; client: SecureClientSessionOptions; changes?: number[] }> = {
  "with the usual table": { tableBytes: 4096, client: {} },
  "with a small table": { tableBytes: 300, client: {} },
  "with no table": { tableBytes: 0, client: {} },
  "with a large table": { tableBytes: 65_536, client: { maxDeflateDynamicTableSize: 65_536 } },
  "with a table whose size changes": { tableBytes: 4096, client: {}, changes: [0, 100, 4096] },
};
for (const [name, { tableBytes, client: options, changes = [] }] of Object.entries(CONNECTIONS)) {
  t.test(`what Node's client encodes, ${name}`, async (t) => {
    const random = createRandom(tableBytes + changes.length);
    const decoder = decoderOf({ tableBytes });
    const lists: HeaderList[] = [];
    let blocksBytes = 0;
    let updatesCount = 0;
    let listsBytes = 0;
    const { client, socket } = await link(t, options, tableSizeFrame(tableBytes), (block) => {
      blocksBytes += block.length;
      updatesCount += ((block[0] as number) & 0xe0) === 0x20 ? 1 : 0;
      lists.push(decoder.decode(block));
      return hex("88");
    });
    for (let i = 0; i < 100; i++) {
      if (changes.length > 0 && i % 10 === 9) {
        const settled = once(client, "remoteSettings");
        // At times two before the next request: it says the least, and the last.
        const sizes = random(2) === 0 ? [0, 4096] : [changes[random(changes.length)] as number];
        socket.write(Buffer.concat(sizes.map(tableSizeFrame)));
        await settled;
      }
      const pairs = randomPairs(random);
      const asked = { ":path": `/weightline.v1.Models/${textOf(random, 20, TEXT.slice(0, 26))}`, ...headersOf(pairs) };
      const hidden = pairs.slice(0, random(3)).map(([name]) => name);
      await replyTo(client, { ...asked, [sensitiveHeaders]: hidden } as unknown as OutgoingHttpHeaders);
      const { fields, tooLarge } = lists.at(-1) as HeaderList;
      const got = pairsOf({ fields, tooLarge });
      t.equal(lists.length, i + 1);
      t.strictSame(
        got.filter(([name]) => !name.startsWith(":")),
        grouped(pairs),
      );
      t.strictSame(Object.fromEntries(got.filter(([name]) => name.startsWith(":"))), {
        ":method": "GET",
        ":path": asked[":path"],
        ":scheme": "http",
        ":authority": got.find(([name]) => name === ":authority")?.[1],
      });
      listsBytes += fields.reduce((sum, field) => sum + field.length, 0);
    }
    t.ok(updatesCount > changes.length, `${updatesCount} blocks with a table size`);
    t.ok(blocksBytes < listsBytes, `${blocksBytes} bytes of blocks for ${listsBytes} of headers`);
  });
}

t.test("what we encode, Node's client decodes, and so do we", async (t) => {
  const random = createRandom(7);
  let fields: Pair[] = [];
  const decoder = decoderOf();
  const { client } = await link(t, {}, tableSizeFrame(4096), () => {
    const block = encodeHeaders(fields);
    t.strictSame(pairsOf(decoder.decode(block)), fields);
    return block;
  });
  const lengths = [0, 1, 47, 48, 49, 126, 127, 128, 254, 255, 256, 16_383, 16_384, 16_510, 16_511, 16_512, 40_000];
  const lists: Pair[][] = [
    [],
    [
      ["content-type", "application/grpc+proto"],
      ["grpc-status", "0"],
      ["grpc-message", ""],
      ["accept-encoding", "gzip, deflate"],
      ["accept-encoding", "gzip"],
      ["www-authenticate", "x"],
      ["vary", VISIBLE],
    ],
    ...lengths.map((length): Pair[] => [
      ["x-long", textOf(random, length, VISIBLE)],
      [`x-${"n".repeat(Math.min(length, 300))}`, "v"],
    ]),
    ...Array.from({ length: 100 }, () => randomPairs(random)),
  ];
  for (const [i, list] of lists.entries()) {
    fields = [[":status", ["200", "204", "206", "400", "404", "500", "201", "418"][i % 8] as string], ...list];
    t.strictSame(await replyTo(client, { ":path": "/" }), fields.flat());
  }
  t.strictSame(tableOf(decoder), [], "the dynamic table is left alone");
});

t.test("the static table is that of Node", async (t) => {
  let block: Buffer = Buffer.alloc(0);
  const { client } = await link(t, {}, tableSizeFrame(4096), () => block);
  const [firstStatus, afterStatus] = [8, 15];
  const fieldAt = (index: number) => decoderOf().decode(indexed(index)).fields;
  for (let index = firstStatus; index < afterStatus; index++) {
    block = indexed(index);
    t.strictSame(await replyTo(client, { ":path": "/" }), fieldAt(index));
  }
  // These may not be in a reply, or not with any value.
  const others: Record<number, string[]> = {
    1: [":authority", ""],
    2: [":method", "GET"],
    3: [":method", "POST"],
    4: [":path", "/"],
    5: [":path", "/index.html"],
    6: [":scheme", "http"],
    7: [":scheme", "https"],
    28: ["content-length", ""],
    57: ["transfer-encoding", ""],
  };
  for (let index = 1; index < FIRST_DYNAMIC_INDEX; index++) {
    if (others[index] !== undefined) {
      t.strictSame(fieldAt(index), others[index]);
    } else if (index >= afterStatus) {
      block = Buffer.concat([hex("88"), indexed(index), integer(0, 0xf, index), plain("1")]);
      const fields = await replyTo(client, { ":path": "/" });
      t.strictSame(fields, decoderOf().decode(block).fields);
      t.equal(
        encodeHeaders([[fields[2] as string, fields[3] as string]]).toString("hex"),
        indexed(index).toString("hex"),
      );
    }
  }
});

t.test("what we encode takes what it should", async (t) => {
  t.equal(encodeHeaders([[":status", "200"]]).toString("hex"), "88");
  t.equal(encodeHeaders([[":status", "201"]]).toString("hex"), "0803323031");
  t.equal(encodeHeaders([["via", "a"]]).toString("hex"), "0f2d0161");
  t.equal(encodeHeaders([["te", "\u00ff"]]).toString("hex"), "0002746501ff");
  const long = "a".repeat(254);
  t.equal(encodeHeaders([["via", long]]).toString("hex"), `0f2d7f7f${latin1(long).toString("hex")}`);
  t.equal(encodeHeaders([]).length, 0);
  const statics = [":method", "POST", ":path", "/index.html", "accept-encoding", "gzip, deflate", "via", ""];
  const pairs = pairsOf({ fields: statics, tooLarge: false });
  t.equal(encodeHeaders(pairs).toString("hex"), "838590bc");
});

t.test("of random blocks each is decoded or refused, within the limits", async (t) => {
  const random = createRandom(3);
  const limits = { tableBytes: 512, listBytes: 300, pairsCount: 6 };
  const seeds = Object.values(SEQUENCES)
    .flatMap(({ blocks }) => blocks.map(hex))
    .concat(Buffer.concat([sizeUpdate(0), sizeUpdate(512), added("grpc-timeout", "1S"), literal(0x10, ["a", "b"])]));
  const randomBlock = (): Buffer => Buffer.from(Array.from({ length: random(60) }, () => random(256)));
  const mutated = (seed: Buffer): Buffer => {
    const block = Buffer.from(seed);
    for (let changes = 1 + random(4); changes > 0 && block.length > 0; changes--) {
      block[random(block.length)] = random(256);
    }
    const cut = block.subarray(random(3) === 0 ? random(block.length) : 0);
    return random(3) === 0 ? Buffer.concat([cut, randomBlock()]) : cut.subarray(0, cut.length - random(3));
  };
  let decoder = new HeaderDecoder(limits);
  const faults: unknown[] = [];
  let decodedCount = 0;
  let largeCount = 0;
  for (let i = 0; i < 20_000; i++) {
    if (i % 20 === 0) {
      const table = tableOf(decoder);
      if (bytesOf(table) > limits.tableBytes) {
        faults.push(table);
      }
      decoder = new HeaderDecoder(limits);
    }
    const block = random(3) === 0 ? randomBlock() : mutated(seeds[random(seeds.length)] as Buffer);
    try {
      const list = decoder.decode(block);
      decodedCount += 1;
      largeCount += list.tooLarge ? 1 : 0;
      const pairs = pairsOf(list);
      if (pairs.length > limits.pairsCount || bytesOf(pairs) > limits.listBytes) {
        faults.push(list);
      }
    } catch (error) {
      if (!(error instanceof HeaderBlockError)) {
        faults.push(error);
      }
    }
  }
  t.strictSame(faults, []);
  t.ok(decodedCount > 500 && decodedCount < 19_000, `${decodedCount} were decoded`);
  t.ok(largeCount > 10, `${largeCount} were too large`);
});
