import { create } from "@bufbuild/protobuf";
import { compareUtf8 } from "@weightline/proto";
import { type Holding, NodeState } from "@weightline/proto/common";
import { type AnnounceRequest, type Node, NodeSchema } from "@weightline/proto/node";
import { type SourceIdentity, SourceStatus } from "@weightline/proto/p2p";
import { announceReply, judgeAnnounce, type KnownNode } from "./announce-verdict.ts";
import { type Clock, type Directory, LOST_SHOWN_MS, type StatusUpdate, SYSTEM_CLOCK } from "./directory.ts";
import { heldNames, holdersIn, metadataOfHolding, sourceMessage, workersOfHolding } from "./directory-worker.ts";
import { encodeInstances } from "./instance-encoding.ts";
import { namesNear } from "./near-names.ts";
import { withStatus } from "./published-worker.ts";
import { createSourceView, newestFirst, type SourceView } from "./source-view.ts";
import { type NodeLife, type StockWorker, statusNow } from "./worker.ts";

export interface MemoryDirectoryOptions {
  /** Ms after which a stock worker without a heartbeat is stale. */
  heartbeatTimeoutMs: number;
  /** Ms after which it is forgotten. */
  gcTimeoutMs: number;
  /** When agents are asked to announce again, in ms. */
  announceIntervalMs: number;
  /** How often what is over is looked for, in ms. */
  reaperIntervalMs: number;
  clock?: Clock;
}

/** A rank of a stock worker, with the encoded metadata that was published for it. */
interface StockRank {
  worker: StockWorker;
  metadata: Uint8Array;
}

interface Source {
  /** Stock workers are in it with the rank that was published last. */
  view: SourceView;
  /** Worker id -> its other ranks, of those few that have several; the last published one last. */
  otherRanks: Map<string, StockRank[]>;
}

interface MemoryNode extends KnownNode, Pick<Node, "version" | "protection"> {
  life: NodeLife;
  memory: AnnounceRequest["memory"];
  holdings: Holding[];
  /** Source and worker id of each worker that its holdings are. */
  workers: [sourceId: string, workerId: string][];
}

/** A directory that lives and dies with its process: one machine, development, tests. */
export function createMemoryDirectory(options: MemoryDirectoryOptions): Directory {
  const clock = options.clock ?? SYSTEM_CLOCK;
  const now = () => clock.monotonicMs();
  const nodes = new Map<string, MemoryNode>();
  const sources = new Map<string, Source>();
  /** Store id -> the node that has it. */
  const stores = new Map<string, string>();
  let reapedAt = now();

  const sourceOf = (sourceId: string, identity: SourceIdentity): Source => {
    const known = sources.get(sourceId);
    if (known !== undefined) {
      return known;
    }
    const made = { view: createSourceView({ sourceId, identity }, now), otherRanks: new Map() };
    sources.set(sourceId, made);
    return made;
  };

  const removeWorker = (sourceId: string, workerId: string) => {
    const source = sources.get(sourceId);
    source?.otherRanks.delete(workerId);
    source?.view.remove(workerId);
    if (source?.view.size === 0) {
      sources.delete(sourceId);
    }
  };

  /** Takes a holding's worker out, unless another node has announced it since. */
  const removeOwn = (node: NodeLife, [sourceId, workerId]: MemoryNode["workers"][number]) => {
    if (sources.get(sourceId)?.view.held(workerId)?.node === node) {
      removeWorker(sourceId, workerId);
    }
  };

  const removeNode = (name: string) => {
    const node = nodes.get(name);
    for (const worker of node?.workers ?? []) {
      removeOwn((node as MemoryNode).life, worker);
    }
    nodes.delete(name);
    if (node !== undefined && stores.get(node.storeId) === name) {
      stores.delete(node.storeId);
    }
  };

  const lost = ({ life }: MemoryNode) => now() >= life.goneAt;

  const keepOthers = ({ otherRanks }: Source, workerId: string, ranks: StockRank[]) => {
    if (ranks.length > 0) {
      otherRanks.set(workerId, ranks);
    } else {
      otherRanks.delete(workerId);
    }
  };

  /** Forgets what is over, at most once an interval. */
  const reap = () => {
    const time = now();
    if (time - reapedAt < options.reaperIntervalMs) {
      return;
    }
    reapedAt = time;
    for (const [name, { life }] of nodes) {
      if (time - life.goneAt > LOST_SHOWN_MS) {
        removeNode(name);
      }
    }
    for (const [sourceId, source] of sources) {
      for (const [workerId, ranks] of source.otherRanks) {
        keepOthers(
          source,
          workerId,
          ranks.filter(({ worker }) => time < worker.goneAt),
        );
      }
      for (const workerId of source.view.goneStock()) {
        const others = source.otherRanks.get(workerId) ?? [];
        const heir = others.at(-1);
        if (heir === undefined) {
          removeWorker(sourceId, workerId);
        } else {
          keepOthers(source, workerId, others.slice(0, -1));
          source.view.putStock(workerId, heir.worker, heir.metadata);
        }
      }
    }
  };

  const take = (message: AnnounceRequest, known: MemoryNode | undefined) => {
    const before = stores.get(message.storeId);
    if (before !== undefined && before !== message.node && nodes.get(before)?.storeId === message.storeId) {
      removeNode(before);
    }
    if (message.storeId !== "") {
      stores.set(message.storeId, message.node);
    }
    const life: NodeLife = known?.life ?? { name: message.node, ...freshLife(), address: "", epoch: 0n, state: 0 };
    const expiresAt = now() + message.ttlMs;
    Object.assign(life, {
      updatedAtMs: clock.unixMs(),
      freshUntil: expiresAt,
      goneAt: expiresAt,
      address: message.address,
      epoch: message.epoch,
      state: message.state,
    });
    const { epoch, sequence, bootId, storeId, address, holdingsRevision, version, protection, memory } = message;
    const holdings = message.holdings?.holdings ?? known?.holdings ?? [];
    const workers = message.holdings === undefined ? (known?.workers ?? []) : listHoldings(holdings, life, known);
    const told = { epoch, sequence, bootId, storeId, address, holdingsRevision, version, protection, memory };
    nodes.set(message.node, { ...told, live: true, life, holdings, workers });
  };

  const freshLife = () => ({ updatedAtMs: 0, freshUntil: 0, goneAt: 0 });

  /** Puts a node's holdings into their sources, and takes those out that it had before. */
  const listHoldings = (holdings: Holding[], node: NodeLife, known: MemoryNode | undefined): MemoryNode["workers"] => {
    const workers: MemoryNode["workers"] = [];
    for (const holding of holdings) {
      for (const { sourceId, identity, ...worker } of workersOfHolding(holding)) {
        const source = sourceOf(sourceId, identity);
        const owner = source.view.held(worker.workerId)?.node;
        if (owner !== undefined && owner !== node && now() < owner.goneAt) {
          continue;
        }
        workers.push([sourceId, worker.workerId]);
        source.otherRanks.delete(worker.workerId);
        source.view.putHeld({ ...worker, node, holding: () => holding, objectDigest: holding.objectDigest });
      }
    }
    const kept = new Set(workers.map((worker) => worker.join("/")));
    for (const worker of known?.workers ?? []) {
      if (!kept.has(worker.join("/"))) {
        removeOwn(node, worker);
      }
    }
    return workers;
  };

  const heard = () => {
    const time = now();
    return {
      updatedAtMs: clock.unixMs(),
      freshUntil: time + options.heartbeatTimeoutMs,
      goneAt: time + options.gcTimeoutMs,
    };
  };

  const nodeMessage = (name: string, node: MemoryNode): Node =>
    create(NodeSchema, {
      name,
      state: lost(node) ? NodeState.LOST : node.life.state,
      epoch: node.epoch,
      address: node.address,
      lastSeenMs: BigInt(node.life.updatedAtMs),
      holdings: node.holdings,
      version: node.version,
      protection: node.protection,
      ...(node.memory === undefined ? {} : { memory: node.memory }),
    });

  return {
    backend: "memory",
    async announce(message) {
      reap();
      const known = nodes.get(message.node);
      const judgement = judgeAnnounce(message, known === undefined ? undefined : { ...known, live: !lost(known) });
      if (judgement.verdict === "take") {
        take(message, known);
      }
      return announceReply(judgement, options.announceIntervalMs);
    },
    async leave(name, epoch, bootId) {
      const known = nodes.get(name);
      if (known !== undefined && known.epoch === epoch && known.bootId === bootId) {
        removeNode(name);
      }
    },
    async lookup(sourceId, rank) {
      const source = sources.get(sourceId);
      return source === undefined ? [] : holdersIn(source.view, rank);
    },
    near: async (modelName) =>
      namesNear(
        modelName,
        [...sources.values()].flatMap(({ view }) => heldNames(view)),
      ),
    async nodes() {
      reap();
      return [...nodes].sort(([a], [b]) => compareUtf8(a, b)).map(([name, node]) => nodeMessage(name, node));
    },
    async publish({ sourceId, workerId, identity, worker: published }) {
      reap();
      const source = sourceOf(sourceId, identity);
      const { view, otherRanks } = source;
      const { workerRank: rank, status, accelerator, topology } = published.summary;
      const owner = view.held(workerId)?.node;
      if (owner !== undefined && now() < owner.goneAt) {
        return "taken";
      }
      const last = view.stock(workerId);
      const others = otherRanks.get(workerId) ?? [];
      const before = last?.rank === rank ? last : others.find(({ worker }) => worker.rank === rank)?.worker;
      // What is live stays live: a second publish must not hide it.
      const alive = before !== undefined && now() < before.freshUntil;
      const first = status === SourceStatus.READY ? SourceStatus.INITIALIZING : status;
      const displaced = last === undefined || last.rank === rank ? undefined : view.published(workerId);
      keepOthers(source, workerId, [
        ...others.filter(({ worker }) => worker.rank !== rank),
        ...(displaced === undefined ? [] : [{ worker: displaced, metadata: view.metadata(workerId) }]),
      ]);
      const state = { rank, status: alive ? before.status : first, load: alive ? before.load : undefined, ...heard() };
      view.putStock(workerId, { ...state, accelerator, topology }, published.bytes);
      return "stored";
    },
    async updateStatus({ sourceId, workerId, rank, status, sourceLoad }: StatusUpdate) {
      const source = sources.get(sourceId);
      const last = source?.view.stock(workerId);
      const other = source?.otherRanks.get(workerId)?.find(({ worker }) => worker.rank === rank)?.worker;
      const known = last?.rank === rank ? last : other;
      if (source === undefined || known === undefined || now() >= known.goneAt) {
        return "unknown";
      }
      const state = { rank, status, load: sourceLoad, ...heard() };
      if (known === last) {
        source.view.setStock(workerId, state);
      } else {
        Object.assign(known, state);
      }
      return "stored";
    },
    async list(query) {
      reap();
      if (query.sourceId !== undefined) {
        return sources.get(query.sourceId)?.view.list(query) ?? new Uint8Array();
      }
      const { limit, ...filters } = query;
      const all = [...sources.values()].flatMap(({ view }) => view.select(filters)).sort(newestFirst);
      return encodeInstances(limit === undefined ? all : all.slice(0, limit));
    },
    async worker(sourceId, workerId) {
      const source = sources.get(sourceId);
      if (source === undefined) {
        return undefined;
      }
      const { view, otherRanks } = source;
      const { identity } = view;
      const last = view.stock(workerId);
      const lastRank = last === undefined ? [] : [{ worker: last, metadata: view.metadata(workerId) }];
      const [lowest] = [...(otherRanks.get(workerId) ?? []), ...lastRank]
        .filter(({ worker }) => now() < worker.goneAt)
        .sort((a, b) => a.worker.rank - b.worker.rank);
      if (lowest !== undefined) {
        const { worker, metadata } = lowest;
        const status = statusNow(worker.status, worker, now());
        return { identity, metadata: withStatus(metadata, status, worker.updatedAtMs) };
      }
      const held = view.held(workerId);
      return held === undefined || held.hidden || now() >= held.node.goneAt
        ? undefined
        : { identity, metadata: metadataOfHolding(held) };
    },
    async sources(modelName) {
      reap();
      return [...sources.values()]
        .filter(({ view }) => modelName === "" || view.identity.modelName === modelName)
        .sort((a, b) => compareUtf8(a.view.sourceId, b.view.sourceId))
        .flatMap(({ view }) => sourceMessage(view) ?? []);
    },
    async size() {
      reap();
      const counts = { ready: 0, draining: 0, lost: 0 };
      for (const node of nodes.values()) {
        counts[lost(node) ? "lost" : node.life.state === NodeState.DRAINING ? "draining" : "ready"]++;
      }
      const shown = [...sources.values()].map(({ view }) => view.shownCount());
      const workers = shown.reduce((sum, count) => sum + count, 0);
      return { nodes: counts, sources: shown.filter((count) => count > 0).length, workers };
    },
    ready: async () => undefined,
    health: async () => undefined,
    close: async () => undefined,
  };
}
