import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import {
  type MoverOptions,
  type MoverOrder,
  type MoverReport,
  native,
  type StoreLockHandle,
} from "@weightline/rdma-native";
import { isErrorCode, type Logger, WeightlineError } from "@weightline/runtime";
import { CHANNEL_VERSION, type FromMover, type ToMover } from "./channel.ts";
import type { MoverClient, OrderOptions } from "./mover-client.ts";

/** The mover died while it had the order: the same order may be given to the next. */
export class MoverLostError extends WeightlineError {
  constructor() {
    super("Unavailable", "the mover process ended in the middle of its work", {
      wayOut: "it is started again by itself",
    });
  }
}

export interface MoverProcessOptions extends Omit<MoverOptions, "port"> {
  port: number;
  lock: StoreLockHandle;
  log: Logger;
  /** Bytes and chunks that children were sent. */
  onServed: (report: MoverReport) => void;
  /** A child's refusal was right. */
  onDamage: (report: MoverReport) => void;
  onRestart: () => void;
}

/** The mover's process, started again when it dies. */
export interface MoverProcess extends MoverClient {
  /** Where it listens; "" while it does not run. */
  address(): string;
  /** Where it listened last: stays the same over restarts. */
  lastAddress(): string;
  running(): boolean;
  pid(): number | undefined;
  restarts(): number;
  /** While it does not run: how often it ended, why, and when it is started again; "" while it runs. */
  trouble(): string;
  stop(): Promise<void>;
}

interface Pending {
  resolve(report: MoverReport): void;
  reject(error: Error): void;
  onProgress: OrderOptions["onProgress"];
}

const ENTRY = fileURLToPath(new URL("./mover-main.ts", import.meta.url));
const START_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 2000;
const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 5000;
/** Movers that may be killed before the first one has ever listened. */
const FIRST_TRIES = 5;
/** A mover that ran so long had no fault at its start. */
const HEALTHY_MS = 30_000;

function faultOf(fault: {
  code: string;
  message: string;
  field: string;
  value: string;
  wayOut: string;
}): WeightlineError {
  const code = isErrorCode(fault.code) ? fault.code : "Internal";
  return new WeightlineError(code, fault.message, fault);
}

/** Marks errors of a peer that is not to be believed. */
export class DistrustError extends WeightlineError {}

function reportError(report: MoverReport): WeightlineError {
  const fault = report.fault ?? {
    code: "Internal",
    message: "the mover failed without a word",
    field: "",
    value: "",
    limit: "",
    wayOut: "",
  };
  const code = isErrorCode(fault.code) ? fault.code : "Internal";
  return report.distrustPeer === true
    ? new DistrustError(code, fault.message, fault)
    : new WeightlineError(code, fault.message, fault);
}

class Mover implements MoverProcess {
  readonly #options: MoverProcessOptions;
  readonly #pending = new Map<number, Pending>();
  #child: ChildProcess | undefined;
  #address = "";
  #lastAddress = "";
  #ready = Promise.withResolvers<void>();
  #nextId = 1;
  #restarts = 0;
  #closed = false;
  #backoffMs = BACKOFF_MIN_MS;
  #port: number;
  #timer: NodeJS.Timeout | undefined;
  /** Movers in a row that ended before they had run for HEALTHY_MS. */
  #deaths = 0;
  #lastEnd = "";
  #nextStartAt = 0;

  constructor(options: MoverProcessOptions) {
    this.#options = options;
    this.#port = options.port;
    this.#ready.promise.catch(() => undefined);
  }

  address = () => this.#address;
  lastAddress = () => this.#lastAddress;
  running = () => this.#child !== undefined && this.#address !== "";
  pid = () => this.#child?.pid;
  restarts = () => this.#restarts;
  closed = () => this.#closed;

  trouble(): string {
    if (this.running()) {
      return "";
    }
    const times = this.#deaths === 1 ? "once" : `${this.#deaths} times in a row`;
    const inS = Math.max(0, (this.#nextStartAt - performance.now()) / 1000);
    const next = this.#child === undefined ? `it is started again in ${inS.toFixed(1)} s` : "it is being started again";
    return this.#deaths === 0 ? "the mover is being started" : `the mover ended ${times} (${this.#lastEnd}); ${next}`;
  }

  /** Settles when one listens; rejects when that is given up. */
  ready = (): Promise<void> => this.#ready.promise;

  /** Spawned on the main thread: the kernel's signal to the mover comes when the thread that spawned it ends. */
  start(): Promise<void> {
    const { store, bind, lock } = this.#options;
    const startedAt = performance.now();
    const child = spawn(process.execPath, [ENTRY], {
      stdio: ["ignore", "inherit", "inherit", native.storeLockDescriptor(lock), "ipc"],
      serialization: "advanced",
    });
    this.#child = child;
    const started = Promise.withResolvers<void>();
    let startFailure = "";
    const timer = setTimeout(() => {
      startFailure = `it did not start within ${START_TIMEOUT_MS} ms`;
      started.reject(new WeightlineError("DeadlineExceeded", `the mover did not start within ${START_TIMEOUT_MS} ms`));
      child.kill("SIGKILL");
    }, START_TIMEOUT_MS);
    child.on("message", (message: FromMover) => {
      if ("address" in message) {
        this.#address = message.address;
        this.#lastAddress = message.address;
        this.#port = Number(message.address.slice(message.address.lastIndexOf(":") + 1));
        started.resolve();
        this.#ready.resolve();
      } else if ("failed" in message) {
        const fault = faultOf(message.failed);
        startFailure = fault.message;
        started.reject(fault);
        // It does nothing any more: only its end makes the next one start.
        child.kill("SIGKILL");
      } else {
        this.#take(message.report);
      }
    });
    child.on("error", (error) => started.reject(error));
    child.on("exit", (code, signal) => {
      clearTimeout(timer);
      started.reject(new MoverLostError());
      const how = signal === null ? `exit code ${code}` : `killed by ${signal}`;
      this.#lastEnd = startFailure === "" ? how : startFailure;
      this.#lost(code, signal, startFailure, performance.now() - startedAt);
    });
    child.send(
      { version: CHANNEL_VERSION, start: { store, bind, port: this.#port } } satisfies ToMover,
      () => undefined,
    );
    return started.promise.finally(() => clearTimeout(timer));
  }

  #take(report: MoverReport): void {
    if (report.kind === "served") {
      this.#options.onServed(report);
    } else if (report.kind === "damage") {
      this.#options.onDamage(report);
    } else {
      const pending = this.#pending.get(report.id);
      if (report.kind === "progress") {
        pending?.onProgress?.(report);
        return;
      }
      this.#pending.delete(report.id);
      if (report.kind === "done") {
        pending?.resolve(report);
      } else {
        pending?.onProgress?.(report);
        pending?.reject(reportError(report));
      }
    }
  }

  /** The child is reaped: only now may the next one start, two would fill the same files. */
  #lost(code: number | null, signal: NodeJS.Signals | null, startFailure: string, ranMs: number): void {
    this.#child = undefined;
    const wasReady = this.#address !== "";
    this.#address = "";
    if (wasReady) {
      this.#ready = Promise.withResolvers();
      this.#ready.promise.catch(() => undefined);
    }
    for (const pending of this.#pending.values()) {
      pending.reject(new MoverLostError());
    }
    this.#pending.clear();
    // One that says what is wrong, or ends by itself before it ever listened, would only do so again.
    const firstFailed =
      this.#lastAddress === "" && (signal === null || startFailure !== "" || this.#deaths >= FIRST_TRIES);
    if (this.#closed || firstFailed) {
      this.#ready.reject(new MoverLostError());
      return;
    }
    if (ranMs > HEALTHY_MS) {
      this.#backoffMs = BACKOFF_MIN_MS;
      this.#deaths = 0;
    }
    this.#deaths += 1;
    this.#nextStartAt = performance.now() + this.#backoffMs;
    this.#options.log.error(
      { event: "mover-ended", code, signal, why: this.#lastEnd, in_a_row: this.#deaths, again_in_ms: this.#backoffMs },
      "the mover ended; the next one is started",
    );
    this.#timer = setTimeout(() => {
      this.#restarts += 1;
      this.#options.onRestart();
      this.start().catch((error: Error) =>
        this.#options.log.error({ event: "mover-start-failed", error: error.message }, "the mover did not start"),
      );
    }, this.#backoffMs);
    this.#backoffMs = Math.min(BACKOFF_MAX_MS, this.#backoffMs * 2);
  }

  async order(
    body: Parameters<MoverClient["order"]>[0],
    { signal, onProgress }: OrderOptions = {},
  ): Promise<MoverReport> {
    signal?.throwIfAborted();
    if (this.#closed) {
      throw new MoverLostError();
    }
    await this.#untilReady(signal);
    const child = this.#child;
    if (child === undefined) {
      throw new MoverLostError();
    }
    const id = this.#nextId++;
    const settled = Promise.withResolvers<MoverReport>();
    this.#pending.set(id, { resolve: settled.resolve, reject: settled.reject, onProgress });
    child.send({ version: CHANNEL_VERSION, order: { ...body, id } as MoverOrder } satisfies ToMover, () => undefined);
    const cancel = () => {
      child.send(
        { version: CHANNEL_VERSION, order: { kind: "cancel", id: this.#nextId++, orderId: id } } satisfies ToMover,
        () => undefined,
      );
    };
    signal?.addEventListener("abort", cancel, { once: true });
    return settled.promise.finally(() => signal?.removeEventListener("abort", cancel));
  }

  /** The next mover may take its time: who gives up waiting for it is let go. */
  async #untilReady(signal: AbortSignal | undefined): Promise<void> {
    const given = Promise.withResolvers<never>();
    const giveUp = () => given.reject(signal?.reason);
    signal?.addEventListener("abort", giveUp, { once: true });
    try {
      await Promise.race([this.#ready.promise, given.promise]);
    } finally {
      signal?.removeEventListener("abort", giveUp);
    }
  }

  async stop(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#ready.reject(new MoverLostError());
    const child = this.#child;
    if (child === undefined) {
      return;
    }
    const gone = new Promise((resolve) => child.once("exit", resolve));
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
    child.disconnect();
    await gone;
    clearTimeout(timer);
  }
}

/**
 * Starts the mover, which takes a while: its orders wait until then. `ready` rejects with what kept it from starting (a port
 * that is taken, a broken addon); one that is killed before it listens is followed by the next.
 */
export function startMover(options: MoverProcessOptions): { mover: MoverProcess; ready: Promise<void> } {
  const mover = new Mover(options);
  const ready = mover
    .start()
    .catch((error: unknown) => {
      if (!(error instanceof MoverLostError)) {
        throw error;
      }
    })
    .then(mover.ready);
  // Who starts other things meanwhile may fail before asking.
  ready.catch(() => undefined);
  return { mover, ready };
}
