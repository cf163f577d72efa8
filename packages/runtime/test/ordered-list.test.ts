// A list in the order of arrival: members come and go, and nothing is made for it.
import { spawnSync } from "node:child_process";
import { OrderedList, Place } from "@weightline/runtime";
import t from "tap";

const namesOf = (list: OrderedList<string>) => {
  const names: string[] = [];
  list.forEach((name) => {
    names.push(name);
  });
  return names.join("");
};

t.test("members come and go in any order, and come back at the end", async (t) => {
  const list = new OrderedList<string>();
  const [a, b, c, d] = [..."abcd"].map((name) => new Place(name)) as [
    Place<string>,
    Place<string>,
    Place<string>,
    Place<string>,
  ];
  t.equal(list.first, undefined);
  for (const place of [a, b, c, d]) {
    list.add(place);
  }
  t.equal(namesOf(list), "abcd");
  list.add(b);
  t.equal(namesOf(list), "acdb", "one that is there goes to the end");
  list.add(b);
  t.equal(namesOf(list), "acdb");
  t.ok(list.delete(a), "the first");
  t.ok(list.delete(d), "one between");
  t.ok(list.delete(b), "the last");
  t.notOk(list.delete(b), "not twice");
  t.equal(namesOf(list), "c");
  t.ok(list.has(c), "the only one is there");
  t.notOk(list.has(a));
  t.equal(list.size, 1);
  t.ok(list.delete(c));
  t.equal(list.size, 0);
  t.equal(list.first, undefined);
  list.add(a);
  t.equal(list.first, "a");
});

t.test("whatever is done, it is as an array would have it", async (t) => {
  const list = new OrderedList<string>();
  const places = [..."abcdefgh"].map((name) => new Place(name));
  let array: string[] = [];
  let seed = 1;
  const random = (below: number) => {
    seed = (seed * 48_271) % 2_147_483_647;
    return seed % below;
  };
  for (let i = 0; i < 5000; i++) {
    const place = places[random(places.length)] as Place<string>;
    const others = array.filter((name) => name !== place.member);
    const there = others.length < array.length;
    if (random(2) === 0) {
      list.add(place);
      array = [...others, place.member];
    } else {
      t.equal(list.delete(place), there);
      array = others;
    }
    t.equal(namesOf(list), array.join(""));
    t.equal(list.size, array.length);
    t.equal(list.first, array[0]);
  }
});

t.test("a visit may take out the one that it has", async (t) => {
  const list = new OrderedList<Place<string>>();
  const places = [..."abc"].map((name) => {
    const place = new Place<string>(name);
    return new Place(place);
  });
  for (const place of places) {
    list.add(place);
  }
  const seen: string[] = [];
  list.forEach((inner) => {
    seen.push(inner.member);
    list.delete(places[seen.length - 1] as Place<Place<string>>);
  });
  t.strictSame(seen, ["a", "b", "c"]);
  t.equal(list.size, 0);
});

/** Members that come and go while a list lives long; prints by how many bytes the space of old objects grew. */
const CHURN = (list: string, move: string) => `
import { getHeapSpaceStatistics } from "node:v8";
import { OrderedList, Place } from "@weightline/runtime";
const oldBytes = () => getHeapSpaceStatistics().find(({ space_name: name }) => name === "old_space").space_used_size;
const list = ${list};
const members = Array.from({ length: 20 }, (_, i) => new Place(i));
for (const member of members) {
  list.add(member);
}
globalThis.gc();
globalThis.gc();
const move = (member) => { ${move} };
const before = oldBytes();
for (let i = 0; i < 200_000; i++) {
  move(members[i % members.length]);
}
console.log(oldBytes() - before);
`;

function grownBytes(list: string, move: string): number {
  const flags = ["--expose-gc", "--single-threaded", "--no-opt", "--no-maglev", "--no-sparkplug"];
  const done = spawnSync(
    process.execPath,
    [...flags, "--disable-warning=ExperimentalWarning", "--input-type=module", "-e", CHURN(list, move)],
    { cwd: import.meta.dirname, encoding: "utf8" },
  );
  if (done.status !== 0) {
    throw new Error(done.stderr);
  }
  return Number(done.stdout);
}

t.test("nothing is left for full collections, as by a Set", async (t) => {
  const set = grownBytes("new Set()", "list.delete(member); list.add(member);");
  const list = grownBytes("new OrderedList()", "list.add(member);");
  t.ok(set > 2_000_000, `${set} bytes of a Set`);
  t.ok(list < 200_000, `${list} of the list`);
});
