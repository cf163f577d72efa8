// Load on a gRPC server from this process: at an offered rate, or as fast as it answers.
import { setTimeout as sleep } from "node:timers/promises";
import {
  openRawConnection,
  type PreparedCall,
  type RawConnection,
  type RawReply,
} from "../test/support/http2-frames.ts";

/** What a load saw. */
export interface LoadResult {
  /** Ms of each answered call, ascending. At an offered rate they count from when the call was meant to start. */
  latenciesMs: Float64Array;
  /** Calls that were not answered, or not as they should be. */
  failed: number;
  /** What was read in the last reply that was not as it should be; "" when all were. */
  complaint: string;
  /** Seconds from the first call's start to the last one's end. */
  seconds: number;
}

export interface LoadOptions {
  /** Makes the k-th call; the reply's message is asked for with `keep`. */
  send: (k: number, keep: boolean, done: (reply: RawReply) => void) => void;
  count: number;
  /** Whether a reply is as it should be; its message is kept for it. */
  right?: (message: Buffer) => boolean;
}

const TICK_MS = 1;

/** Makes calls on each of the connections in turn. */
export function callsOn(connections: readonly RawConnection[], next: (k: number) => PreparedCall): LoadOptions["send"] {
  return (k, keep, done) => connections[k % connections.length]?.send(next(k), keep, done);
}

export function percentile(sorted: ArrayLike<number>, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export function openConnections(port: number, count: number): Promise<RawConnection[]> {
  return Promise.all(Array.from({ length: count }, () => openRawConnection(port)));
}

/** Collects how calls end. */
function createTally(options: LoadOptions) {
  const latencies: number[] = [];
  let failed = 0;
  let complaint = "";
  let lastAt = 0;
  const { promise, resolve } = Promise.withResolvers<void>();
  return {
    all: promise,
    ended: () => latencies.length + failed,
    take({ answered, message }: RawReply, startedAt: number) {
      lastAt = performance.now();
      if (answered && (options.right?.(message) ?? true)) {
        latencies.push(lastAt - startedAt);
      } else {
        failed += 1;
        complaint = answered ? message.toString("utf8").replace(/[^ -~]/g, "") : "no reply's message";
      }
      if (latencies.length + failed === options.count) {
        resolve();
      }
    },
    result: (startedAt: number): LoadResult => ({
      latenciesMs: Float64Array.from(latencies).sort(),
      failed,
      complaint,
      seconds: (lastAt - startedAt) / 1000,
    }),
  };
}

/** Starts `rate` calls a second whether or not earlier ones have ended: a server that is late is late for all that wait. */
export async function offerCalls(options: LoadOptions & { rate: number }): Promise<LoadResult> {
  const { send, count, rate, right } = options;
  const tally = createTally(options);
  const start = performance.now();
  let sent = 0;
  while (sent < count) {
    const due = Math.min(count, Math.floor(((performance.now() - start) / 1000) * rate) + 1);
    for (; sent < due; sent++) {
      const meantAt = start + (sent / rate) * 1000;
      send(sent, right !== undefined, (reply) => tally.take(reply, meantAt));
    }
    await sleep(TICK_MS);
  }
  await tally.all;
  return tally.result(start);
}

/** Keeps `atOnce` calls running until `count` have ended. */
export async function pressCalls(options: LoadOptions & { atOnce: number }): Promise<LoadResult> {
  const { send, count, atOnce, right } = options;
  const tally = createTally(options);
  const start = performance.now();
  let sent = 0;
  const one = () => {
    const k = sent;
    sent += 1;
    if (k < count) {
      const startedAt = performance.now();
      send(k, right !== undefined, (reply) => {
        tally.take(reply, startedAt);
        one();
      });
    }
  };
  for (let i = 0; i < atOnce; i++) {
    one();
  }
  await tally.all;
  return tally.result(start);
}

/** One call and its reply's message; throws when it was not answered. */
export async function callOnce(connection: RawConnection, call: PreparedCall): Promise<Buffer> {
  const reply = await new Promise<RawReply>((resolve) => connection.send(call, true, resolve));
  if (!reply.answered) {
    throw new Error("a call was not answered");
  }
  return reply.message;
}
