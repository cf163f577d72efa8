// Changes right inputs into wrong ones, by a seed alone: bytes and JSON values.

/** Numbers that depend on the seed alone (mulberry32). */
export interface Random {
  /** 0 to limit - 1; 0 for a limit of 0. */
  below(limit: number): number;
  oneIn(n: number): boolean;
  pick<T>(list: readonly T[]): T;
}

export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (z ^ (z >>> 14)) >>> 0;
  };
  const below = (limit: number) => (limit === 0 ? 0 : next() % limit);
  return {
    below,
    oneIn: (n) => below(n) === 0,
    pick: (list) => list[below(list.length)] as (typeof list)[number],
  };
}

/** What numbers are at their limits, and what is no number. */
const NUMBERS = [
  0,
  -0,
  1,
  -1,
  0.5,
  1e300,
  -1e300,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  Number.MAX_SAFE_INTEGER,
  Number.MAX_SAFE_INTEGER + 1,
  -Number.MAX_SAFE_INTEGER,
];
const TEXTS = [
  "",
  "0",
  "-1",
  "1e9",
  "18446744073709551615",
  "18446744073709551616",
  "99999999999999999999",
  "-9223372036854775809",
  "__proto__",
  "constructor",
  "toString",
  "../../etc",
  "/",
  "\u0000",
  "\ud800",
  "\ufeff",
  "a".repeat(5000),
  "NaN",
  "f".repeat(32),
  "f".repeat(64),
];
/** Names that mean something to JavaScript. */
const NAMES = ["__proto__", "constructor", "prototype", "toString", "valueOf", "hasOwnProperty", "then", "toJSON", ""];

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Sets a member as JSON.parse does: `__proto__` is a name like others. */
function setMember(object: Record<string, unknown>, name: string, value: unknown): void {
  Object.defineProperty(object, name, { value, enumerable: true, configurable: true, writable: true });
}

function someValue(random: Random, depth: number): unknown {
  switch (random.below(9)) {
    case 0:
      return null;
    case 1:
      return random.oneIn(2);
    case 2:
    case 3:
      return random.pick(NUMBERS);
    case 4:
    case 5:
      return random.pick(TEXTS);
    case 6:
      return Array.from({ length: random.below(4) }, () => (depth > 3 ? 1 : someValue(random, depth + 1)));
    default: {
      const object: Record<string, unknown> = {};
      for (let i = random.below(4); i > 0; i--) {
        setMember(object, random.pick([...NAMES, ...TEXTS]), depth > 3 ? 1 : someValue(random, depth + 1));
      }
      return object;
    }
  }
}

/** One member somewhere is dropped, added, doubled under another name, or gets another value. The value itself stays. */
export function mutateJson(value: unknown, random: Random): unknown {
  if (Array.isArray(value)) {
    if (value.length === 0 || random.oneIn(4)) {
      return random.pick([
        () => [],
        () => [...value, ...value],
        () => [...value, someValue(random, 0)],
        () => value.slice(1),
        () => someValue(random, 0),
      ])();
    }
    const at = random.below(value.length);
    return value.map((entry, i) => (i === at ? mutateJson(entry, random) : entry));
  }
  if (isObject(value)) {
    const names = Object.keys(value);
    const copy: Record<string, unknown> = {};
    const chosen = names[random.below(names.length)];
    const act = random.below(8);
    for (const name of names) {
      if (name !== chosen || act > 2) {
        setMember(copy, name, name === chosen ? mutateJson(value[name], random) : value[name]);
      } else if (act === 1) {
        setMember(copy, name, someValue(random, 0));
      } else if (act === 2) {
        setMember(copy, random.pick(NAMES), value[name]);
        setMember(copy, name, value[name]);
      }
    }
    if (names.length === 0 || random.oneIn(6)) {
      setMember(copy, random.pick(NAMES), someValue(random, 0));
    }
    return copy;
  }
  return someValue(random, 0);
}

/** 1 to 4 changes: bits, bytes, limits of numbers, runs cut, doubled or moved, tokens, an early end. */
export function mutateBytes(bytes: Buffer, random: Random, tokens: readonly Buffer[] = []): Buffer {
  let changed = Buffer.from(bytes);
  for (let changes = 1 + random.below(4); changes > 0; changes--) {
    const at = random.below(changed.length);
    const run = changed.subarray(at, at + 1 + random.below(random.oneIn(4) ? 64 : 8));
    switch (changed.length === 0 ? 6 : random.below(9)) {
      case 0:
        changed.writeUInt8((changed[at] ?? 0) ^ (1 << random.below(8)), at);
        break;
      case 1:
        changed.writeUInt8(random.below(256), at);
        break;
      case 2:
        changed.writeUInt8(random.pick([0, 1, 0x7f, 0x80, 0xff, 0x08, 0x0a, 0x12, 0x22, 0x5b, 0x7b]), at);
        break;
      case 3: {
        const width = random.pick([2, 4, 8]);
        if (changed.length >= width) {
          const from = Math.min(at, changed.length - width);
          changed.fill(random.pick([0x00, 0xff, 0x80, 0x7f]), from, from + width);
        }
        break;
      }
      case 4:
        changed = Buffer.concat([changed.subarray(0, at), changed.subarray(at + run.length)]);
        break;
      case 5:
        changed = Buffer.concat([changed.subarray(0, at), run, changed.subarray(at)]);
        break;
      case 6:
        if (tokens.length > 0) {
          changed = Buffer.concat([changed.subarray(0, at), random.pick(tokens), changed.subarray(at)]);
        }
        break;
      case 7:
        run.copy(changed, random.below(changed.length));
        break;
      default:
        changed = changed.subarray(0, random.oneIn(4) ? at : Math.max(0, changed.length - 1 - random.below(8)));
    }
  }
  return changed;
}
