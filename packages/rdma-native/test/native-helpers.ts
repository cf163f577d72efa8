import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import {
  type MoverHandle,
  type MoverOrder,
  type MoverReport,
  type NativeFault,
  native,
  type ScanResult,
  type StreamTicket,
} from "@weightline/rdma-native";

/** An order that failed. */
export class OrderError extends Error {
  readonly fault: NativeFault;
  readonly report: MoverReport;

  constructor(report: MoverReport) {
    super(report.fault?.message ?? "no fault");
    this.fault = report.fault as NativeFault;
    this.report = report;
  }
}

type Body = MoverOrder extends infer Order ? (Order extends MoverOrder ? Omit<Order, "id"> : never) : never;

/** A mover in this process with a store of its own on tmpfs. */
export interface TestMover {
  readonly store: string;
  readonly handle: MoverHandle;
  readonly address: string;
  /** Reports that belong to no order: served, damage. */
  readonly events: MoverReport[];
  order(body: Body, onProgress?: (report: MoverReport, id: number) => void): Promise<MoverReport>;
  cancel(orderId: number): void;
  close(): void;
}

export function createTestMover(port = 0): TestMover {
  const store = mkdtempSync("/dev/shm/weightline-native-");
  mkdirSync(`${store}/holdings`);
  const waiting = new Map<
    number,
    {
      resolve(report: MoverReport): void;
      reject(error: Error): void;
      onProgress?: (report: MoverReport, id: number) => void;
    }
  >();
  const events: MoverReport[] = [];
  const handle = native.createMover({ store, bind: ["127.0.0.1"], port }, (report) => {
    const entry = waiting.get(report.id);
    if (report.id === 0) {
      events.push(report);
    } else if (report.kind === "progress") {
      entry?.onProgress?.(report, report.id);
    } else {
      waiting.delete(report.id);
      if (report.kind === "done") {
        entry?.resolve(report);
      } else {
        entry?.reject(new OrderError(report));
      }
    }
  });
  // The mover's function does not keep the process alive; a test that waits for it must.
  const alive = setInterval(() => undefined, 1000);
  let nextId = 1;
  return {
    store,
    handle,
    address: native.moverAddress(handle),
    events,
    order(body, onProgress) {
      const id = nextId++;
      return new Promise((resolve, reject) => {
        waiting.set(id, { resolve, reject, ...(onProgress === undefined ? {} : { onProgress }) });
        native.moverOrder(handle, { ...body, id } as MoverOrder);
      });
    },
    cancel: (orderId) => native.moverOrder(handle, { kind: "cancel", id: nextId++, orderId }),
    close() {
      clearInterval(alive);
      native.closeMover(handle);
      for (const { reject } of waiting.values()) {
        reject(new Error("the mover was closed"));
      }
    },
  };
}

/** Removes a store whose files may carry the immutable flag. */
export async function removeStore(store: string): Promise<void> {
  const { execFileSync } = await import("node:child_process");
  try {
    execFileSync("chattr", ["-R", "-f", "-i", store], { stdio: "ignore" });
  } catch {
    // Nothing carried it.
  }
  rmSync(store, { recursive: true, force: true });
}

export function newId(): string {
  return randomBytes(16).toString("hex");
}

export function newTicket(): StreamTicket {
  return { id: randomBytes(16), secret: randomBytes(32) };
}

/** Writes a safetensors file of one U8 tensor and gives its bytes. */
export function writeModel(path: string, bytes: number, fill?: Buffer): Buffer {
  const data = fill ?? randomBytes(bytes);
  const header = Buffer.from(
    JSON.stringify({ w: { dtype: "U8", shape: [data.length], data_offsets: [0, data.length] } }),
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const whole = Buffer.concat([length, header, data]);
  writeFileSync(path, whole);
  return whole;
}

export interface LoadedHolding {
  id: string;
  scanned: ScanResult;
  objectDigest: Uint8Array;
}

/** Scans and loads a path into a new holding. */
export async function loadHolding(mover: TestMover, path: string): Promise<LoadedHolding> {
  const id = newId();
  const { scanned } = await mover.order({ kind: "scan", holdingId: id, path, loadRoot: "/", algorithm: "xxh3-128" });
  if (scanned === undefined) {
    throw new Error("no scan result");
  }
  const { objectDigest } = await mover.order({ kind: "load", holdingId: id, files: scanned.files, threads: 2 });
  return { id, scanned, objectDigest: objectDigest ?? new Uint8Array() };
}

/** A pull of `loaded` from `parent`, with tickets granted there. */
export async function pullOrder(
  parent: TestMover,
  loaded: LoadedHolding,
  options: { holdingId?: string; streams?: number; stallMs?: number } = {},
) {
  const tickets = Array.from({ length: options.streams ?? 2 }, newTicket);
  for (const ticket of tickets) {
    await parent.order({ kind: "grant", holdingId: loaded.id, ticket, ttlMs: 10_000, child: "child" });
  }
  return pullBody(parent.address, loaded, tickets, options);
}

/** A pull from any endpoint. */
export function pullBody(
  endpoint: string,
  loaded: LoadedHolding,
  tickets: StreamTicket[],
  options: { holdingId?: string; stallMs?: number } = {},
) {
  const { scanned } = loaded;
  return {
    kind: "pull" as const,
    holdingId: options.holdingId ?? newId(),
    parentHoldingId: loaded.id,
    endpoint,
    tickets,
    layoutDigest: scanned.layoutDigest,
    layoutBytes: scanned.layoutBytes,
    totalBytes: scanned.totalBytes,
    objectDigest: new Uint8Array(),
    stallMs: options.stallMs ?? 2000,
  };
}
