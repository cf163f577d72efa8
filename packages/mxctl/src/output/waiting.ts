import { printable } from "./output.ts";

/** Nobody wonders before this. */
const QUIET_MS = 1000;
const TICK_MS = 1000;

/** Shows on a terminal that something is waited for, once it takes longer than a second; the line is taken away again. */
export async function waiting<Result>(
  what: string,
  work: Promise<Result>,
  stream: NodeJS.WriteStream = process.stderr,
): Promise<Result> {
  if (stream.isTTY !== true) {
    return work;
  }
  const startedAt = performance.now();
  let shown = false;
  const show = () => {
    shown = true;
    const seconds = Math.floor((performance.now() - startedAt) / 1000);
    stream.write(`\r\u001b[2K${`${printable(what)} ... ${seconds} s`.slice(0, (stream.columns || 80) - 1)}`);
  };
  let timer = setTimeout(() => {
    show();
    timer = setInterval(show, TICK_MS);
  }, QUIET_MS);
  try {
    return await work;
  } finally {
    clearTimeout(timer);
    if (shown) {
      stream.write("\r\u001b[2K");
    }
  }
}
