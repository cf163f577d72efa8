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
  /** Where it listens: stays the same over restarts. */
  address(): string;
  running(): boolean;
  pid(): number | undefined;
  restarts(): number;
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
  #ready = Promise.withResolvers<void>();
  #nextId = 1;
  #restarts = 0;
  #closed = false;
  #backoffMs = BACKOFF_MIN_MS;
  #port: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: MoverProcessOptions) {
    this.#options = options;
    this.#port = options.port;
    this.#ready.promise.catch(() => undefined);
  }

  address = () => this.#address;
  running = () => this.#child !== undefined && this.#address !== "";
  pid = () => this.#child?.pid;
  restarts = () => this.#restarts;
  closed = () => this.#closed;

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
    const timer = setTimeout(() => {
      started.reject(new WeightlineError("DeadlineExceeded", `the mover did not start within ${START_TIMEOUT_MS} ms`));
      child.kill("SIGKILL");
    }, START_TIMEOUT_MS);
    child.on("message", (message: FromMover) => {
      if ("address" in message) {
        this.#address = message.address;
        this.#port = Number(message.address.slice(message.address.lastIndexOf(":") + 1));
        started.resolve();
        this.#ready.resolve();
      } else if ("failed" in message) {
        started.reject(faultOf(message.failed));
      } else {
        this.#take(message.report);
      }
    });
    child.on("error", (error) => started.reject(error));
    child.on("exit", (code, signal) => {
      clearTimeout(timer);
      started.reject(new MoverLostError());
      this.#lost(code, signal, performance.now() - startedAt);
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
  #lost(code: number | null, signal: NodeJS.Signals | null, ranMs: number): void {
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
    if (this.#closed || (!wasReady && this.#restarts === 0)) {
      this.#ready.reject(new MoverLostError());
      return;
    }
    this.#backoffMs = ranMs > HEALTHY_MS ? BACKOFF_MIN_MS : this.#backoffMs;
    this.#options.log.error(
      { event: "mover-ended", code, signal, again_in_ms: this.#backoffMs },
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
    await this.#ready.promise;
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

  async stop(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
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

/** Starts the mover; throws what kept it from starting (a port that is taken, a broken addon). */
export async function startMover(options: MoverProcessOptions): Promise<MoverProcess> {
  const mover = new Mover(options);
  await mover.start();
  return mover;
}
