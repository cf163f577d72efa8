// HTTP/1.1 answers as bytes, for clients that send what no client library would.

export interface RawAnswer {
  status: number;
  headers: Map<string, string>;
  body: Buffer;
}

function bodyEnd(bytes: Buffer, from: number, headers: Map<string, string>): { end: number; body: Buffer } | undefined {
  if (headers.get("transfer-encoding") !== "chunked") {
    const end = from + Number(headers.get("content-length") ?? 0);
    return end <= bytes.length ? { end, body: bytes.subarray(from, end) } : undefined;
  }
  const pieces: Buffer[] = [];
  for (let at = from; ; ) {
    const line = bytes.indexOf("\r\n", at);
    const size = line < 0 ? Number.NaN : Number.parseInt(bytes.toString("latin1", at, line), 16);
    if (Number.isNaN(size) || line + 2 + size + 2 > bytes.length) {
      return undefined;
    }
    pieces.push(bytes.subarray(line + 2, line + 2 + size));
    at = line + 2 + size + 2;
    if (size === 0) {
      return { end: at, body: Buffer.concat(pieces) };
    }
  }
}

/** Answers one after another; `rest` is what follows the last whole one. */
export function readAnswers(bytes: Buffer): { answers: RawAnswer[]; rest: Buffer } {
  const answers: RawAnswer[] = [];
  let at = 0;
  while (at < bytes.length) {
    const headEnd = bytes.indexOf("\r\n\r\n", at);
    const [statusLine = "", ...lines] = bytes.toString("latin1", at, Math.max(at, headEnd)).split("\r\n");
    const status = /^HTTP\/1\.1 (\d{3}) /.exec(statusLine)?.[1];
    if (headEnd < 0 || status === undefined) {
      break;
    }
    const headers = new Map(
      lines.map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
      }),
    );
    // 1xx and 204 have no body.
    const found =
      status.startsWith("1") || status === "204"
        ? { end: headEnd + 4, body: Buffer.alloc(0) }
        : bodyEnd(bytes, headEnd + 4, headers);
    if (found === undefined) {
      break;
    }
    answers.push({ status: Number(status), headers, body: found.body });
    at = found.end;
  }
  return { answers, rest: bytes.subarray(at) };
}
