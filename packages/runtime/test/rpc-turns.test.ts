// Calls start by turns of the event loop: whoever else comes is served in between.
import { Health, HealthCheckResponse_ServingStatus as Status } from "@weightline/proto/grpc-health";
import { createGrpcChannel, createGrpcServer, route } from "@weightline/runtime";
import t from "tap";

const CALLS = 32;
const WORK_MS = 1;
/** Two milliseconds' worth and the one that goes beyond, of two turns: the mark between them may come a turn later. */
const ALONE_MOST = 6;

/** Handlers that started in each turn, of which each keeps the event loop for WORK_MS. */
const startsByTurn: number[] = [];
let starts = 0;

function endTurn(): void {
  if (starts > 0) {
    startsByTurn.push(starts);
  }
  starts = 0;
}

function check() {
  if (starts === 0) {
    setImmediate(endTurn);
  }
  starts += 1;
  for (const end = performance.now() + WORK_MS; performance.now() < end; ) {
    // Nobody else runs meanwhile.
  }
  return { status: Status.SERVING };
}

const server = await createGrpcServer({
  routes: [route(Health, { check })],
  bind: ["127.0.0.1"],
  port: 0,
  portFlag: "--port",
});
t.teardown(() => server.stop(0));

t.test("a client that is alone has no more of a turn than two milliseconds", async (t) => {
  const channel = createGrpcChannel({ addresses: [{ host: "127.0.0.1", port: server.port }] });
  t.teardown(() => channel.close());
  const client = channel.client(Health);
  await client.check({});
  startsByTurn.length = 0;
  const replies = await Promise.all(Array.from({ length: CALLS }, () => client.check({})));
  endTurn();
  t.equal(replies.filter(({ status }) => status === Status.SERVING).length, CALLS);
  t.equal(
    startsByTurn.reduce((sum, count) => sum + count, 0),
    CALLS,
  );
  t.ok(Math.max(...startsByTurn) <= ALONE_MOST, `calls a turn: ${startsByTurn}`);
});
