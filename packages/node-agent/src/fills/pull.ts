import { randomBytes } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { DigestAlgorithm, MoverReport } from "@weightline/rdma-native";
import { type Logger, toWeightlineError, WeightlineError } from "@weightline/runtime";
import type { DirectoryClient } from "../directory/directory-client.ts";
import type { Evictor } from "../holdings/evictor.ts";
import { chargeOf, type Holding } from "../holdings/holding.ts";
import type { HoldingRegistry } from "../holdings/holding-registry.ts";
import type { MemoryAccount } from "../holdings/memory-account.ts";
import { readLayoutHeader } from "../layout-reader.ts";
import type { MoverClient } from "../mover/mover-client.ts";
import { DistrustError, MoverLostError } from "../mover/mover-process.ts";
import type { PeerClient } from "../peers/peer-client.ts";
import type { StoreFolder } from "../store/store-folder.ts";
import type { TransferLog } from "../transfers/transfer-log.ts";
import {
  type Candidate,
  chooseObject,
  fedBy,
  matches,
  orderHolders,
  readable,
  type Target,
  targetOf,
} from "./candidates.ts";
import { createDistrust } from "./distrust.ts";
import type { Progress } from "./fill-board.ts";
import { progressOf } from "./load.ts";
import { mend } from "./mend.ts";
import type { Wanted } from "./wanted.ts";

export interface PullerOptions {
  node: string;
  store: StoreFolder;
  registry: HoldingRegistry;
  account: MemoryAccount;
  evictor: Evictor;
  mover: MoverClient;
  directory: DirectoryClient;
  peers: PeerClient;
  transfers: TransferLog;
  log: Logger;
  streams: number;
  stallTimeoutMs: number;
  algorithm: DigestAlgorithm;
  /** Counts chunks and bytes of ended transfers, fallbacks from one peer to the next. */
  onTransfer: (report: MoverReport) => void;
  onFallback: (reason: string) => void;
}

type Report = (progress: Partial<Progress>) => void;

/** Fills holdings from other nodes. */
export interface Puller {
  /** Brings what is wanted; goes on from a holding that was begun. */
  pull(wanted: Wanted, report: Report, signal: AbortSignal): Promise<Holding>;
}

/** How long a pull goes on finding peers after the last verified byte. */
const PATIENCE_MS = 30_000;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 2000;
/** A peer that failed is asked after the others for so long. */
const RESTING_MS = 2000;
/** Times that one pull throws away what it has and begins anew. */
const BEGINNINGS_MAX = 4;
/** Parts of a charge for segments, before the layout says how many there are. */
const SEGMENTS_EXPECTED = 16;
/** Field of the fault that says: all chunks had their digests, and yet it is another object. */
const OBJECT_DIGEST_FIELD = "object_digest";

export function createPuller(options: PullerOptions): Puller {
  const { node, store, registry, account, evictor, mover, directory, peers, transfers, log } = options;
  const distrust = createDistrust();

  /** Asks the directory, then each node itself: the serving agent's own holdings decide. */
  const findCandidates = async (wanted: Wanted, signal: AbortSignal) => {
    const holders = await directory.lookup(wanted, signal);
    const found = await Promise.all(holders.map((holder) => peers.find(holder, wanted, signal)));
    return found
      .flat()
      .filter((candidate) => candidate.node !== node && readable(candidate) && !fedBy(candidate, node));
  };

  const notFound = async (wanted: Wanted) => {
    const near = [...registry.near(wanted.modelName), ...(await directory.near(wanted))];
    return new WeightlineError("NotFound", `no node holds ${wanted.label}`, {
      field: "model_name",
      value: wanted.modelName,
      near: [...new Set(near)].slice(0, 5),
      wayOut: "load it on one node first: mxctl load PATH --model-name NAME",
    });
  };

  /** A holding of this name that was begun, and what it must be filled with. */
  const begun = (wanted: Wanted): { holding: Holding; target: Target } | undefined => {
    const holding = registry
      .named(wanted.sourceId, wanted.rank)
      .find(
        ({ record, leases }) =>
          (record.state === "filling" && record.source.kind === "transfer") ||
          (record.state === "damaged" && leases === 0),
      );
    if (holding === undefined) {
      return undefined;
    }
    const { layoutDigest, objectDigest, origin, source } = holding.record;
    const expected = objectDigest !== "" ? objectDigest : source.kind === "transfer" ? source.expected : "";
    return { holding, target: { layoutDigest, objectDigest: expected, origin } };
  };

  const chargeFor = ({ holding: { totalBytes, layoutBytes, chunkBytes } }: Candidate) =>
    chargeOf(Number(totalBytes), Number(layoutBytes), chunkBytes, SEGMENTS_EXPECTED);

  const makeHolding = async (wanted: Wanted, candidate: Candidate): Promise<Holding> => {
    const named =
      wanted.named ??
      candidate.holding.identities.flatMap(({ identity, rank, sourceId }) =>
        identity !== undefined && sourceId === wanted.sourceId && rank === wanted.rank ? [{ identity, rank }] : [],
      )[0];
    if (named === undefined) {
      throw new WeightlineError("Refused", `node ${candidate.node} does not say the identity of ${wanted.sourceId}`, {
        field: "source_id",
        value: wanted.sourceId,
      });
    }
    const target = targetOf(candidate.holding);
    const id = randomBytes(16).toString("hex");
    const record = {
      identities: [named],
      state: "filling" as const,
      source: { kind: "transfer" as const, node: candidate.node, expected: target.objectDigest },
      origin: target.origin,
      layoutDigest: target.layoutDigest,
      objectDigest: "",
      createdMs: Date.now(),
    };
    const draft = registry.adopt(id, { ...record, identities: [] });
    try {
      await account.reserve(draft, chargeFor(candidate));
    } catch (error) {
      registry.remove(id);
      throw error;
    }
    await mkdir(store.holdingFolder(id), { recursive: true });
    return registry.add(id, record, draft.charge);
  };

  /** One transfer from one peer. */
  const transferFrom = async (
    wanted: Wanted,
    candidate: Candidate,
    holding: Holding,
    parents: Set<string>,
    report: Report,
    signal: AbortSignal,
  ): Promise<MoverReport> => {
    // Before it is opened: of two that open each other at once, both see it.
    holding.parent = candidate.node;
    const opened = await peers.open(candidate, holding, {
      streams: options.streams,
      algorithm: options.algorithm,
      signal,
    });
    const { holding: remote } = opened;
    const entry = transfers.start({
      modelName: wanted.modelName,
      parent: candidate.node,
      holdingId: holding.id,
      totalBytes: remote.totalBytes,
      objectDigest: remote.objectDigest,
    });
    const onProgress = progressOf("receiving", candidate.node, holding, report);
    let last: MoverReport | undefined;
    try {
      const done = await mover.order(
        {
          kind: "pull",
          holdingId: holding.id,
          parentHoldingId: remote.holdingId,
          endpoint: opened.endpoint,
          tickets: opened.tickets,
          layoutDigest: remote.layoutDigest,
          layoutBytes: remote.layoutBytes,
          totalBytes: remote.totalBytes,
          objectDigest: Buffer.from(
            holding.record.source.kind === "transfer" ? holding.record.source.expected : holding.record.objectDigest,
            "hex",
          ),
          stallMs: options.stallTimeoutMs,
        },
        {
          signal,
          onProgress: (moved) => {
            last = moved;
            entry.progress(moved);
            onProgress(moved);
            learnLayout(holding);
          },
        },
      );
      last = done;
      holding.verifiedBytes = Number(done.verifiedBytes);
      await learnLayout(holding);
      entry.end(done, "", done.objectDigest ?? new Uint8Array());
      return done;
    } catch (error) {
      entry.end(last, toWeightlineError(error).message, new Uint8Array());
      throw error;
    } finally {
      if (last !== undefined) {
        options.onTransfer(last);
        if (last.verifiedChunks > 0n) {
          parents.add(candidate.node);
        }
      }
    }
  };

  /** The layout comes with the first bytes; from then on children may follow. */
  const learnLayout = async (holding: Holding): Promise<void> => {
    if (holding.layout === undefined) {
      holding.layout = await readLayoutHeader(store.holdingFolder(holding.id)).catch(() => undefined);
      registry.changed();
    }
  };

  /** What was begun cannot be gone on with: it goes, and the next attempt begins anew. */
  const beginAnew = async (state: PullState, why: string): Promise<void> => {
    const { holding } = state;
    state.holding = undefined;
    state.target = undefined;
    state.parents.clear();
    state.beginnings += 1;
    if (holding !== undefined) {
      log.warn({ holding: holding.id, why }, "what was received is thrown away: it is begun anew");
      await evictor.giveUp(holding);
    }
    if (state.beginnings >= BEGINNINGS_MAX) {
      throw new WeightlineError("Corrupt", `the transfer was begun ${state.beginnings} times: ${why}`, {
        field: "holding",
        limit: `${BEGINNINGS_MAX} times`,
        wayOut: "see the log for the peers that were left",
      });
    }
  };

  /** What a failed transfer means for the peer. True: another one may do better. */
  const judge = async (error: unknown, candidate: Candidate, state: PullState): Promise<boolean> => {
    const { resting } = state;
    if (!(error instanceof MoverLostError)) {
      resting.set(candidate.node, performance.now() + RESTING_MS);
    }
    if (error instanceof DistrustError) {
      const wholeIsWrong = error.field === OBJECT_DIGEST_FIELD;
      // When several gave a part of it, nobody knows whose part is wrong: the next attempt takes it from one alone.
      if (!wholeIsWrong || state.parents.size === 1) {
        distrust.add(candidate);
        log.error({ node: candidate.node, error: error.message }, "left this peer: it sent what it should not have");
        options.onFallback("distrusted");
      }
      if (wholeIsWrong) {
        await beginAnew(state, error.message);
      }
      return true;
    }
    const known = toWeightlineError(error);
    if (error instanceof MoverLostError) {
      return !mover.closed();
    }
    if (!["Unavailable", "NotFound", "DeadlineExceeded", "Refused", "PermissionDenied"].includes(known.code)) {
      return false;
    }
    // What two builds cannot do together, waiting does not change; an epoch is another one after the next look.
    if (known.code === "Refused" && known.field !== "epoch") {
      state.refused.add(candidate.node);
    }
    log.warn({ node: candidate.node, error: known.message }, "left this peer");
    options.onFallback(known.code.replace(/(?!^)[A-Z]/g, "_$&").toLowerCase());
    return true;
  };

  const pullOnce = async (
    wanted: Wanted,
    state: PullState,
    report: Report,
    signal: AbortSignal,
  ): Promise<Holding | undefined> => {
    const all = await findCandidates(wanted, signal);
    const trusted = all.filter((candidate) => !distrust.has(candidate));
    if (all.length > 0 && trusted.length === 0) {
      throw (
        state.failure ??
        new WeightlineError("Corrupt", `every node that holds ${wanted.label} sent wrong bytes`, {
          field: "model_name",
          value: wanted.modelName,
          wayOut: "load it again on one of them",
        })
      );
    }
    const started =
      state.holding === undefined
        ? begun(wanted)
        : { holding: state.holding, target: state.target ?? begun(wanted)?.target };
    const target = started?.target;
    const right =
      target === undefined
        ? chooseObject(trusted)
        : orderHolders(trusted.filter((candidate) => matches(candidate, target)));
    state.seen ||= right.length > 0;
    if (right.length > 0 && right.every(({ node: name }) => state.refused.has(name)) && state.failure !== undefined) {
      throw state.failure;
    }
    const now = performance.now();
    const able = right.filter(({ node: name }) => !state.refused.has(name));
    const candidate = able.find(({ node: name }) => (state.resting.get(name) ?? 0) <= now) ?? able[0];
    if (candidate === undefined) {
      // What was begun belongs to an object that nobody has any more: another one may be there.
      if (started !== undefined && trusted.length > 0) {
        state.holding = started.holding;
        await beginAnew(state, "no node has the object any more that it was begun with");
      }
      return undefined;
    }
    state.candidate = candidate;
    const holding = started?.holding ?? (await makeHolding(wanted, candidate));
    if (state.holding === undefined && started !== undefined) {
      // Another life of the agent received a part of it, from whom is not known.
      state.parents.add("");
    }
    state.holding = holding;
    state.target = target ?? targetOf(candidate.holding);
    if (holding.charge < chargeFor(candidate) && holding.layout === undefined) {
      await account.reserve(holding, chargeFor(candidate));
    }
    while (true) {
      try {
        await mend(mover, registry, holding, signal, log);
      } catch (error) {
        if (error instanceof MoverLostError || signal.aborted) {
          throw error;
        }
        await beginAnew(state, toWeightlineError(error).message);
        return undefined;
      }
      const done = await transferFrom(wanted, candidate, holding, state.parents, report, signal);
      // A child may have found damage in what was verified before: it is mended before anybody calls the holding complete.
      if (!holding.suspect) {
        await registry.apply(holding, "filled", (record) => {
          record.objectDigest = Buffer.from(done.objectDigest ?? new Uint8Array()).toString("hex");
        });
        return holding;
      }
    }
  };

  return {
    async pull(wanted, report, signal) {
      const state: PullState = {
        holding: undefined,
        target: undefined,
        candidate: undefined,
        failure: undefined,
        seen: false,
        resting: new Map(),
        parents: new Set(),
        refused: new Set(),
        beginnings: 0,
      };
      let patienceEnds = performance.now() + PATIENCE_MS;
      let verified = 0;
      for (let waitMs = RETRY_MIN_MS; ; waitMs = Math.min(RETRY_MAX_MS, waitMs * 2)) {
        signal.throwIfAborted();
        report({ state: "finding" });
        try {
          const holding = await pullOnce(wanted, state, report, signal);
          if (holding !== undefined) {
            return holding;
          }
          if (!state.seen) {
            throw await notFound(wanted);
          }
        } catch (error) {
          const { candidate } = state;
          if (signal.aborted || candidate === undefined || !(await judge(error, candidate, state))) {
            await abandon(state, signal);
            throw error;
          }
          state.failure = toWeightlineError(error);
          state.candidate = undefined;
        }
        const now = performance.now();
        const moved = state.holding?.verifiedBytes ?? 0;
        const progressed = moved > verified;
        verified = moved;
        if (progressed) {
          patienceEnds = now + PATIENCE_MS;
          waitMs = RETRY_MIN_MS;
        }
        if (now > patienceEnds) {
          await abandon(state, signal);
          throw state.failure ?? (await notFound(wanted));
        }
        await sleep(waitMs, undefined, { signal }).catch(() => undefined);
      }
    },
  };

  /** A pull that failed for good leaves nothing behind; one that the agent's stop ended is resumed at the next start. */
  async function abandon(state: PullState, signal: AbortSignal): Promise<void> {
    if (state.holding !== undefined && state.holding.record.state === "filling" && !mover.closed() && !signal.aborted) {
      await evictor.evict(state.holding, 0);
    }
  }
}

interface PullState {
  holding: Holding | undefined;
  target: Target | undefined;
  candidate: Candidate | undefined;
  failure: WeightlineError | undefined;
  /** Somebody had it at some time. */
  seen: boolean;
  /** Peers that failed, and until when they are asked last. */
  resting: Map<string, number>;
  /** Peers that this agent cannot read from, whatever they hold: versions, digests. */
  refused: Set<string>;
  /** Peers that gave a part of `holding`. */
  parents: Set<string>;
  /** Times that a holding was thrown away. */
  beginnings: number;
}
