import { AnnounceVerdict, AnnounceVerdictSchema } from "@weightline/proto/node";
import t from "tap";
import { BACKEND_ERROR_KINDS } from "../src/directory/directory-observer.ts";
import { createControlPlaneMetrics } from "../src/metrics.ts";

const control = createControlPlaneMetrics("1.2.3");
const samples = async () => {
  const { body } = await control.metrics.render("");
  return new Map(
    body
      .split("\n")
      .filter((line) => line !== "" && !line.startsWith("#"))
      .map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]),
  );
};

t.test("each verdict of an announce has its own count, and starts at zero", async (t) => {
  const names = ["accepted", "stale", "name_taken", "resend", "invalid", "failed"];
  const count = async () => {
    const shown = await samples();
    return names.map((verdict) => shown.get(`weightline_announces_total{verdict="${verdict}"}`));
  };
  t.same(await count(), [0, 0, 0, 0, 0, 0]);
  for (const [i, outcome] of [
    AnnounceVerdict.ACCEPTED,
    AnnounceVerdict.STALE,
    AnnounceVerdict.NAME_TAKEN,
    AnnounceVerdict.RESEND,
    "invalid" as const,
    "failed" as const,
  ].entries()) {
    for (let times = 0; times <= i; times++) {
      control.announced(outcome);
    }
  }
  t.same(await count(), [1, 2, 3, 4, 5, 6]);
  t.equal(AnnounceVerdictSchema.values.length, 5, "those four, and none at all");
});

t.test("what a directory tells of its backend; zeros for one that tells nothing", async (t) => {
  const { failed, reconnected } = control.observer("redis");
  const of = async (name: string) => (await samples()).get(name);
  for (const kind of BACKEND_ERROR_KINDS) {
    t.equal(await of(`weightline_backend_errors_total{backend="redis",kind="${kind}"}`), 0, kind);
  }
  failed("full");
  failed("full");
  failed("timeout");
  reconnected();
  t.equal(await of('weightline_backend_errors_total{backend="redis",kind="full"}'), 2);
  t.equal(await of('weightline_backend_errors_total{backend="redis",kind="timeout"}'), 1);
  t.equal(await of('weightline_backend_reconnects_total{backend="redis"}'), 1);
  control.backendUp("redis", true);
  t.equal(await of('weightline_backend_up{backend="redis"}'), 1);
  control.backendUp("redis", false);
  t.equal(await of('weightline_backend_up{backend="redis"}'), 0);
});

t.test("the directory's size is there while it can be read, and not while it cannot", async (t) => {
  let known = true;
  control.countSize(async () =>
    known ? { nodes: { ready: 3, draining: 1, lost: 2 }, sources: 4, workers: 5 } : undefined,
  );
  const names = [
    'weightline_nodes{state="ready"}',
    'weightline_nodes{state="draining"}',
    'weightline_nodes{state="lost"}',
    "weightline_sources",
    "weightline_workers",
  ];
  const sizes = async () => {
    const shown = await samples();
    return names.map((name) => shown.get(name));
  };
  t.same(await sizes(), [3, 1, 2, 4, 5]);
  known = false;
  t.same(await sizes(), [undefined, undefined, undefined, undefined, undefined]);
  known = true;
  t.same(await sizes(), [3, 1, 2, 4, 5]);
  t.equal(
    (await samples()).get(
      `weightline_build_info{program="control-plane",version="1.2.3",node_version="${process.version}"}`,
    ),
    1,
  );
});
