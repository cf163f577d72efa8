import { get } from "node:http";

/** What a daemon's operations port answers, on a connection of its own that has ended by then. */
export function readOperations(port: number, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const request = get({ host: "127.0.0.1", port, path, agent: false }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (piece: string) => {
        text += piece;
      });
      answer.on("close", () => resolve(text));
    });
    request.on("error", reject);
  });
}

/** Sum of a metric's samples whose lines begin with `name`, labels included. */
export async function readMetric(port: number, name: string): Promise<number> {
  const lines = (await readOperations(port, "/metrics")).split("\n").filter((line) => line.startsWith(name));
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}
