// The lives of nodes as a replica counts them.
import t from "tap";
import { createNodeMirror } from "../src/directory/redis/node-mirror.ts";

t.test("what is forgotten takes no room, and is read again from the start", async (t) => {
  const mirror = createNodeMirror({ monotonicMs: () => 1000, unixMs: () => 0 });
  const row = (name: string) => [name, "7", "1", "127.0.0.1:1", "5000", "6000"];
  mirror.apply("9", [row("a"), row("b")], 5000);
  t.equal(mirror.lifeOf("a").goneAt, 2000, "for as long as Redis says, on this clock");
  t.same([mirror.size, mirror.counts().ready, mirror.version], [2, 2, "9"]);
  mirror.apply("10", [["a", null, null, null, null, null] as unknown as string[]], 5000);
  t.equal(mirror.counts().ready, 1, "one that left is counted no more");
  mirror.reset();
  t.same([mirror.size, mirror.counts().ready, mirror.version], [0, 0, "0"]);
  t.equal(mirror.lifeOf("b").goneAt, 0, "and lives only when it is read again");
});
