import t from "tap";
import { versionCheck } from "../src/version-skew.ts";

const level = (...versions: string[]) =>
  versionCheck(versions.map((version, i) => ({ program: `p${i}`, version }))).level;

t.test("versions side by side: the same or the next release works, more is a warning", async (t) => {
  t.equal(level("1.2.0", "1.2.9", "1.2.0-rc1"), "ok");
  t.equal(level("1.2.0", "1.3.0"), "note");
  t.equal(level("1.2.0", "1.3.0", "1.4.0"), "warning");
  t.equal(level("1.9.0", "2.0.0"), "warning");
  t.equal(level("1.2.0", ""), "note");
  t.equal(level("1.2.0"), "note");
  t.match(
    versionCheck([
      { program: "agent", version: "0.1.0" },
      { program: "mxctl", version: "0.3.0" },
    ]),
    {
      name: "versions",
      evidence: /^agent 0\.1\.0, mxctl 0\.3\.0: more than one release apart/,
      cure: /the control plane first/,
    },
  );
});
