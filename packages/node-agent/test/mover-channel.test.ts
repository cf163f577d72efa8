// The mover's channel between two versions: a mover that was replaced under a running agent says so.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import t from "tap";

t.test("an agent of another version is refused in words", async (t) => {
  const entry = fileURLToPath(new URL("../src/mover/mover-main.ts", import.meta.url));
  const mover = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", entry], {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    serialization: "advanced",
  });
  t.teardown(() => mover.kill("SIGKILL"));
  mover.send({ version: 2, start: { store: "/dev/shm/none", bind: ["127.0.0.1"], port: 0 } });
  const [message] = await once(mover, "message");
  t.match(message, {
    failed: {
      code: "Refused",
      message: /speaks version 2 of the mover's channel, this mover 1/,
      wayOut: "restart the agent",
    },
  });
});
