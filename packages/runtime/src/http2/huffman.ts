/**
 * How many bits the code of each octet has, and last that of the end of a string, as digits to the base of 36 (RFC 7541,
 * appendix B). That is all there is to know: codes are in the order of their lengths, and of one length in that of octets.
 */
const CODE_BITS_COUNTS =
  "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6cad67777777777777777777777878djde6" +
  "f56565666577666567655677777fbedskmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmn" +
  "qqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrqu";
const CODE_DIGITS_BASE = 36;
const SHORTEST_CODE_BITS = 5;
const END_OF_STRING = 256;
/** As many as a binary tree with a leaf for each octet, and one for the end, has inside. */
const STATES_COUNT = 256;
const PADDING_MAX_BITS = 7;

/** Steps, each: the state after it in the low octet, what it gives in the next, and whether it gives that, or is a fault. */
const SYMBOL_SHIFT = 8;
const GIVES_SHIFT = 16;
const FAULT = 1 << 17;
const STEPS_BITS = 4;

interface Machine {
  /** For each state and half of an octet. */
  readonly steps: Int32Array;
  /** 1 for states in which a string may end: all that is left are ones, and at most 7. */
  readonly mayEnd: Uint8Array;
}

/** The code's tree: for each inner node and bit the node that follows, or -1 less the symbol. The root is node 0. */
function createTree(): Int16Array {
  const tree = new Int16Array(STATES_COUNT * 2);
  const bitsCounts = Array.from(CODE_BITS_COUNTS, (digit) => Number.parseInt(digit, CODE_DIGITS_BASE));
  const symbols = [...bitsCounts.keys()].sort((a, b) => (bitsCounts[a] as number) - (bitsCounts[b] as number) || a - b);
  let nodesCount = 1;
  let code = 0;
  let codeBits = 0;
  for (const symbol of symbols) {
    const bits = bitsCounts[symbol] as number;
    code <<= bits - codeBits;
    codeBits = bits;
    let node = 0;
    for (let bit = bits - 1; bit > 0; bit--) {
      const at = node * 2 + ((code >> bit) & 1);
      if (tree[at] === 0) {
        tree[at] = nodesCount++;
      }
      node = tree[at] as number;
    }
    tree[node * 2 + (code & 1)] = -1 - symbol;
    code += 1;
  }
  return tree;
}

function createMachine(): Machine {
  const tree = createTree();
  const steps = new Int32Array(STATES_COUNT << STEPS_BITS);
  for (let at = 0; at < steps.length; at++) {
    let node = at >> STEPS_BITS;
    let given = 0;
    for (let bit = STEPS_BITS - 1; bit >= 0; bit--) {
      node = tree[node * 2 + ((at >> bit) & 1)] as number;
      if (node < 0) {
        const symbol = -1 - node;
        given = symbol === END_OF_STRING ? FAULT : (1 << GIVES_SHIFT) | (symbol << SYMBOL_SHIFT);
        node = 0;
      }
      if (given === FAULT) {
        break;
      }
    }
    steps[at] = given | node;
  }
  const mayEnd = new Uint8Array(STATES_COUNT);
  let node = 0;
  for (let bits = 0; bits <= PADDING_MAX_BITS; bits++) {
    mayEnd[node] = 1;
    node = tree[node * 2 + 1] as number;
  }
  return { steps, mayEnd };
}

const { steps: STEPS, mayEnd: MAY_END } = createMachine();

/** Where strings are put together; longer ones get a place of their own. */
const SCRATCH_BYTES = 4096;
const scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES);

/**
 * The string that octets `from` to `to` (excluded) are the Huffman code of (RFC 7541, section 5.2), one character for each
 * octet; undefined if they are none: with the end of a string inside, or with padding that has zeros or more than 7 bits.
 */
export function decodeHuffman(block: Buffer, from: number, to: number): string | undefined {
  // One more: each step writes, also one that gives nothing.
  const maxBytes = Math.floor(((to - from) * 8) / SHORTEST_CODE_BITS) + 1;
  const out = maxBytes <= SCRATCH_BYTES ? scratch : Buffer.allocUnsafe(maxBytes);
  let length = 0;
  let state = 0;
  let seen = 0;
  for (let at = from; at < to; at++) {
    const octet = block[at] as number;
    const high = STEPS[(state << STEPS_BITS) | (octet >> STEPS_BITS)] as number;
    out[length] = high >> SYMBOL_SHIFT;
    length += (high >> GIVES_SHIFT) & 1;
    const low = STEPS[((high & 0xff) << STEPS_BITS) | (octet & 0xf)] as number;
    out[length] = low >> SYMBOL_SHIFT;
    length += (low >> GIVES_SHIFT) & 1;
    state = low & 0xff;
    seen |= high | low;
  }
  return (seen & FAULT) === 0 && MAY_END[state] === 1 ? out.toString("latin1", 0, length) : undefined;
}
