import { randomBytes } from "node:crypto";
import { computeSourceId, filesIdentity } from "@weightline/proto";
import type { DigestAlgorithm, MoverReport, ScanResult, SourceFile } from "@weightline/rdma-native";
import { type Logger, toWeightlineError, WeightlineError } from "@weightline/runtime";
import type { Evictor } from "../holdings/evictor.ts";
import { type Holding, keyOf } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { MemoryAccount } from "../holdings/memory-account.ts";
import type { MoverClient } from "../mover/mover-client.ts";
import type { NamedIdentity } from "../store/holding-record.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import type { Progress } from "./fill-board.ts";
import { mend } from "./mend.ts";
import { beginHolding, mergeWithTwin } from "./new-holding.ts";
import { persistentOrder } from "./persistent-order.ts";

export interface LoadRequest {
  /** Absolute. */
  path: string;
  modelName: string;
  /** "": the snapshot's name where the path is one, else none. */
  revision: string;
  rank: number;
  replace: boolean;
}

export interface Loaded {
  holding: Holding;
  sourceId: string;
  revision: string;
  ignoredFiles: string[];
  warnings: string[];
  extraTensors: bigint;
  alreadyHeld: boolean;
}

export interface LoaderOptions {
  node: string;
  store: StoreFolder;
  registry: HoldingRegistry;
  account: MemoryAccount;
  evictor: Evictor;
  mover: MoverClient;
  log: Logger;
  loadRoot: string;
  threads: number;
  algorithm: DigestAlgorithm;
}

type Report = (progress: Partial<Progress>) => void;

/** Fills holdings from files on this node. */
export interface Loader {
  load(request: LoadRequest, report: Report, signal: AbortSignal): Promise<Loaded>;
  /** Goes on with a load that a crash interrupted. */
  resume(holding: Holding, report: Report, signal: AbortSignal): Promise<void>;
  /** Ends the running load of a holding; settles when it has ended, at once when there is none. */
  cancel(holding: Holding): Promise<void>;
}

const RATE_WINDOW_MS = 250;

/** Turns the mover's reports into progress with a rate. */
export function progressOf(
  state: string,
  parent: string,
  holding: Holding,
  report: Report,
): (report: MoverReport) => void {
  const startedAt = performance.now();
  let first: bigint | undefined;
  let lastAt = 0;
  return (moved) => {
    if (moved.totalBytes === 0n) {
      return;
    }
    holding.verifiedBytes = Number(moved.verifiedBytes);
    first ??= moved.verifiedBytes;
    const now = performance.now();
    if (now - lastAt < RATE_WINDOW_MS && moved.verifiedBytes < moved.totalBytes) {
      return;
    }
    lastAt = now;
    const bytesPerS = Number(moved.verifiedBytes - first) / Math.max(0.05, (now - startedAt) / 1000);
    report({
      state,
      parent,
      verifiedBytes: moved.verifiedBytes,
      totalBytes: moved.totalBytes,
      networkBytes: moved.networkBytes,
      bytesPerS,
    });
  };
}

/** An error of a scan in the words of who asked: which node does not see which path. */
function pathError(error: unknown, node: string, path: string): WeightlineError {
  const known = toWeightlineError(error);
  if (known.code !== "NotFound" || !known.message.endsWith("does not exist here")) {
    return known;
  }
  return new WeightlineError("NotFound", `node ${node} does not see ${known.value || path}`, {
    field: "path",
    value: path,
    wayOut: "give a path that the agent's own mount namespace has, or mount it there",
    cause: error,
  });
}

export function createLoader(options: LoaderOptions): Loader {
  const { node, registry, evictor, mover, log, loadRoot, threads, algorithm } = options;

  const scan = async (
    request: LoadRequest,
    holdingId: string,
    report: Report,
    signal: AbortSignal,
  ): Promise<ScanResult> => {
    report({ state: "scanning" });
    try {
      const done = await persistentOrder(
        mover,
        { kind: "scan", holdingId, path: request.path, loadRoot, algorithm },
        { signal },
      );
      if (done.scanned === undefined) {
        throw new WeightlineError("Internal", "the mover scanned without a result");
      }
      return done.scanned;
    } catch (error) {
      throw pathError(error, node, request.path);
    }
  };

  const fill = async (
    holding: Holding,
    files: SourceFile[],
    report: Report,
    signal: AbortSignal,
  ): Promise<Uint8Array> => {
    const onProgress = progressOf("loading", "", holding, report);
    while (true) {
      await mend(mover, registry, holding, signal, log);
      const done = await persistentOrder(
        mover,
        { kind: "load", holdingId: holding.id, files, threads },
        { signal, onProgress },
      );
      holding.verifiedBytes = Number(done.verifiedBytes);
      // A child may have found damage in what was verified before.
      if (!holding.suspect) {
        return done.objectDigest ?? new Uint8Array();
      }
    }
  };

  const sameName = (named: NamedIdentity) => registry.named(computeSourceId(named.identity), named.rank);

  /** Another object under this name on this node needs `replace`. */
  const checkReplace = (named: NamedIdentity, request: LoadRequest, layoutDigest: string) => {
    const others = sameName(named).filter(
      ({ record }) => record.state === "complete" && record.layoutDigest !== layoutDigest,
    );
    if (others.length > 0 && !request.replace) {
      throw new WeightlineError(
        "AlreadyExists",
        `this node holds a different object as ${request.modelName}, rank ${request.rank}`,
        {
          field: "--model-name",
          value: request.modelName,
          wayOut: "give --replace to put this one in its place, or another --revision",
        },
      );
    }
  };

  /** What a finished load means for other holdings of this node. */
  const settle = async (
    holding: Holding,
    named: NamedIdentity,
    digest: string,
    replace: boolean,
  ): Promise<{ holding: Holding; alreadyHeld: boolean }> => {
    const twin = await mergeWithTwin(registry, evictor, holding, named, digest);
    if (twin !== undefined) {
      return { holding: twin, alreadyHeld: true };
    }
    const others = sameName(named).filter((other) => other !== holding && other.record.state === "complete");
    if (others.length > 0 && !replace) {
      throw new WeightlineError(
        "AlreadyExists",
        `this node holds a different object as ${named.identity.modelName}, rank ${named.rank}`,
        {
          field: "--model-name",
          value: named.identity.modelName,
          wayOut: "give --replace to put this one in its place, or another --revision",
        },
      );
    }
    await registry.apply(holding, "filled", (record) => {
      record.objectDigest = digest;
    });
    for (const other of others) {
      await registry.removeIdentity(other, keyOf(named));
      if (other.record.identities.length === 0) {
        await evictor.evict(other, 0);
      }
    }
    return { holding, alreadyHeld: false };
  };

  /** Loads that run, by their holding's id. */
  const running = new Map<string, { cancel: () => void; ended: Promise<void> }>();

  return {
    async load(request, report, outer) {
      const id = randomBytes(16).toString("hex");
      let holding: Holding | undefined;
      const own = new AbortController();
      const ended = Promise.withResolvers<void>();
      running.set(id, { cancel: () => own.abort(), ended: ended.promise });
      const signal = AbortSignal.any([outer, own.signal]);
      try {
        const scanned = await scan(request, id, report, signal);
        const revision = request.revision === "" ? scanned.snapshotRevision : request.revision;
        const named = { identity: filesIdentity(request.modelName, revision), rank: request.rank };
        const layoutDigest = Buffer.from(scanned.layoutDigest).toString("hex");
        checkReplace(named, request, layoutDigest);
        holding = await beginHolding(options, id, scanned, named, {
          kind: "load",
          path: request.path,
          files: scanned.files,
        });
        for (const warning of scanned.warnings) {
          log.warn({ event: "load-warning", holding: id }, warning);
        }
        const digest = Buffer.from(await fill(holding, scanned.files, report, signal)).toString("hex");
        const result = await settle(holding, named, digest, request.replace);
        const { ignoredFiles, warnings, extraTensors } = scanned;
        return { ...result, sourceId: computeSourceId(named.identity), revision, ignoredFiles, warnings, extraTensors };
      } catch (error) {
        // Asked before: giving it up is an eviction, too.
        const evicted = own.signal.aborted;
        await abandon(id, holding);
        throw evicted
          ? new WeightlineError("Cancelled", `the load of ${request.modelName} was ended: it is being evicted`, {
              field: "model_name",
              value: request.modelName,
              wayOut: "load it again",
            })
          : error;
      } finally {
        running.delete(id);
        ended.resolve();
      }
    },
    async cancel({ id }) {
      const load = running.get(id);
      load?.cancel();
      await load?.ended;
    },
    async resume(holding, report, signal) {
      const { source, identities } = holding.record;
      const [named] = identities;
      if (source.kind !== "load" || named === undefined) {
        throw new WeightlineError("Internal", `holding ${holding.id} is no interrupted load`);
      }
      const digest = Buffer.from(await fill(holding, source.files, report, signal)).toString("hex");
      await settle(holding, named, digest, true);
    },
  };

  /** A load that failed leaves nothing behind. */
  async function abandon(id: string, holding: Holding | undefined): Promise<void> {
    if (mover.closed()) {
      return;
    }
    if (holding !== undefined) {
      await evictor.evict(holding, 0);
      return;
    }
    await evictor
      .discardFolder(id)
      .catch((error: unknown) =>
        log.warn(
          { event: "folder-left", holding: id, error: toWeightlineError(error).message },
          "a failed load's folder stays",
        ),
      );
    registry.remove(id);
  }
}
