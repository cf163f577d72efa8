// The agent's settings as clusters give them.
import { AGENT_OPTIONS } from "@weightline/node-agent";
import { readConfiguration } from "@weightline/runtime";
import t from "tap";

const read = (argv: string[], env: Record<string, string> = {}) =>
  readConfiguration({ table: AGENT_OPTIONS, argv, env });

t.test("28: service links of Services whose names make the agent's variables", async (t) => {
  for (const [variable, value, fallback] of [
    ["MX_WORKER_GRPC_PORT", "port", 6555],
    ["MX_AGENT_DATA_PORT", "dataPort", 6755],
    ["MX_AGENT_METRICS_PORT", "metricsPort", 9402],
  ] as const) {
    const link = "tcp://10.0.0.5:6379";
    const linked = read([], { [variable]: link });
    t.equal(linked.values[value], fallback, variable);
    t.same(linked.notices, [`${variable}=${link} is a Kubernetes service link and is not used`]);
    t.equal(read([], { [variable]: "7" }).values[value], 7);
  }
});

t.test("sizes as Kubernetes writes them, addresses that are none", async (t) => {
  t.equal(read([], { MX_AGENT_MEMORY_LIMIT: "64Gi" }).values.memoryLimit, 64 * 2 ** 30);
  t.equal(read(["--memory-limit", "500M"]).values.memoryLimit, 500e6);
  t.throws(() => read(["--memory-limit", "500m"]), { message: /"500m" is not a size like 64Gi/ });
  t.throws(() => read([], { MX_SERVER_ADDRESS: ",", MODEL_EXPRESS_URL: "" }), {
    code: "InvalidArgument",
    message: /names no address \(from MX_SERVER_ADDRESS\)/,
  });
  t.throws(() => read(["--control-plane", "nowhere"]), {
    message: /"nowhere" is not host:port \(from --control-plane\)/,
  });
});
