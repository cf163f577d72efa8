import type { RunningProgram } from "./program.ts";

/** Environment in which {@link heapBytes} works: the inspector takes any free port, and listens only when it is asked to. */
export const INSPECTABLE = { env: { NODE_OPTIONS: "--inspect-port=127.0.0.1:0" } };

/** Bytes that a program's heap and its buffers hold after all garbage is gone: what stays of the process's memory is V8's own affair. */
export async function heapBytes(program: RunningProgram): Promise<number> {
  program.kill("SIGUSR1");
  const [, url = ""] = await program.waitFor(/Debugger listening on (ws:\S+)/);
  const socket = new WebSocket(url);
  await new Promise((resolve, reject) => {
    socket.addEventListener("open", resolve);
    socket.addEventListener("error", reject);
  });
  let last = 0;
  const call = (method: string): Promise<Record<string, number>> => {
    const id = ++last;
    return new Promise((resolve) => {
      const take = (event: MessageEvent) => {
        const answer = JSON.parse(String(event.data)) as { id?: number; result: Record<string, number> };
        if (answer.id === id) {
          socket.removeEventListener("message", take);
          resolve(answer.result);
        }
      };
      socket.addEventListener("message", take);
      socket.send(JSON.stringify({ id, method }));
    });
  };
  await call("HeapProfiler.collectGarbage");
  const { usedSize = 0, backingStorageSize = 0 } = await call("Runtime.getHeapUsage");
  socket.close();
  return usedSize + backingStorageSize;
}
