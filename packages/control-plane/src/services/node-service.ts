import type { HandlerContext } from "@connectrpc/connect";
import { type AnnounceRequest, type AnnounceResponse, NodeService } from "@weightline/proto/node";
import { createBoundedLog, type Logger, route, type ServiceRoute } from "@weightline/runtime";
import type { Directory } from "../directory/directory.ts";
import type { AnnounceOutcome } from "../metrics.ts";
import type { Security } from "../security/security.ts";
import { createAdmission } from "./admission.ts";
import { checkAnnounce } from "./announce-check.ts";
import { createAnnounceStream } from "./announce-stream.ts";
import type { Fleet } from "./fleet.ts";
import { createGathering } from "./gathering.ts";

/**
 * How long announces wait for one another, in ms. No node waits for its announce, and a process that sleeps in between costs
 * more to wake than an announce to take: with 1,000 a second this halves the control plane's CPU on Redis (`./mx bench directory`).
 */
const ANNOUNCES_GATHER_MS = 20;

/**
 * Announces with all holdings that are taken at once. When the nodes of a large cluster all tell everything, because Redis was
 * flushed or a replica is new, what is asked of the backend must come back before its time is over; the others wait here.
 */
const FULL_ANNOUNCES_COUNT = 64;

/** NodeService: announces, lookups, and what operators ask. `onAnnounce` is told how each announce ended. */
export function createNodeService(
  directory: Directory,
  fleet: Fleet,
  security: Security,
  log: Logger,
  onAnnounce: (outcome: AnnounceOutcome) => void,
): ServiceRoute {
  const bounded = createBoundedLog(log);
  const gathered = createGathering(ANNOUNCES_GATHER_MS);
  const admitted = createAdmission(FULL_ANNOUNCES_COUNT);
  const announce = async (request: AnnounceRequest, context: HandlerContext) => {
    let outcome: AnnounceOutcome = "invalid";
    let reply: AnnounceResponse;
    try {
      security.checkNode(context, request.node);
      checkAnnounce(request);
      outcome = "failed";
      await gathered();
      const take = () => directory.announce(request);
      reply = await (request.holdings === undefined ? take() : admitted(take));
      outcome = reply.verdict;
    } finally {
      onAnnounce(outcome);
    }
    log.trace({ node: request.node, sequence: String(request.sequence), verdict: reply.verdict }, "announce");
    return { ...reply, nowMs: BigInt(Date.now()) };
  };
  return route(NodeService, {
    announce,
    announceStream: createAnnounceStream(announce),
    async leave({ node, epoch, bootId }, context) {
      security.checkNode(context, node);
      // After an announce that came before it.
      await gathered();
      await admitted(() => directory.leave(node, epoch, bootId));
      bounded("info", { event: "node-left", node }, "a node left");
      return {};
    },
    async lookup({ sourceId, rank, modelName }) {
      const holders = await directory.lookup(sourceId, rank);
      const near = holders.length > 0 ? [] : await directory.near(modelName);
      return { holders, near };
    },
    listNodes: async () => ({ nodes: await directory.nodes(), nowMs: BigInt(Date.now()) }),
    listSources: async ({ modelName }) => ({ sources: await directory.sources(modelName) }),
    async *fillNodes(request, { signal }) {
      for await (const node of fleet.fill(request, signal)) {
        yield { node };
      }
    },
    listTransfers: ({ last }, { signal }) => fleet.transfers(last, signal),
  });
}
