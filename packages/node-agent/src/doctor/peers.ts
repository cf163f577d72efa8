import { type Check, error, note, ok, warning } from "./check.ts";

/** How one other node's ports answered. */
export interface PeerFacts {
  name: string;
  /** host:port of its agent. */
  address: string;
  /** "" when it answered, else why not. */
  agent: string;
  /** host:port of its mover; "" when its agent did not say. */
  dataAddress: string;
  /** "" when it took a connection, else why not; also "" where it was not tried. */
  data: string;
}

/** What the control plane told. */
export interface ControlPlaneFacts {
  address: string;
  /** "connected", or what is wrong, of the announces. */
  announces: string;
  /** Undefined: it did not answer now, for this reason. */
  failure: string | undefined;
}

const SHOWN_MAX = 5;

function list(names: readonly string[]): string {
  const more = names.length > SHOWN_MAX ? ` and ${names.length - SHOWN_MAX} more` : "";
  return `${names.slice(0, SHOWN_MAX).join(", ")}${more}`;
}

export function controlPlaneCheck({ address, announces, failure }: ControlPlaneFacts): Check {
  const cure =
    "start it, or give this agent its address (--control-plane, MODEL_EXPRESS_URL); what is held here is served meanwhile";
  if (failure !== undefined) {
    return error("control-plane", `the control plane at ${address} does not answer this node: ${failure}`, cure);
  }
  return announces === "connected"
    ? ok("control-plane", `the control plane at ${address} answers, and takes this node's announces`)
    : warning("control-plane", `the control plane at ${address} answers, announces do not arrive: ${announces}`, cure);
}

/** `skipped`: how many nodes were not asked, to keep it short. */
export function peerChecks(peers: readonly PeerFacts[], skipped: number): Check[] {
  if (peers.length === 0) {
    return [note("peers", "no other node is known: nothing can be received from one, or sent to it")];
  }
  const beside = skipped > 0 ? ` (${skipped} more were not asked)` : "";
  const silent = peers.filter(({ agent }) => agent !== "");
  const answering = peers.filter(({ agent }) => agent === "");
  const closed = answering.filter(({ data }) => data !== "");
  const unknown = answering.filter(({ dataAddress }) => dataAddress === "");
  const agents =
    silent.length === 0
      ? ok("peers", `all of ${peers.length} other nodes answer on their agent's port${beside}`)
      : error(
          "peers",
          `${silent.length} of ${peers.length} other nodes do not answer on their agent's port${beside}: ${list(silent.map(({ name, address, agent }) => `${name} at ${address} (${agent})`))}`,
          "open that port (--port, 6555) between nodes in firewalls and network policies, or look at that node",
        );
  const data =
    closed.length > 0
      ? error(
          "peers-data",
          `${closed.length} of ${answering.length} nodes that answer take no data connection: ${list(closed.map(({ name, dataAddress, data: why }) => `${name} at ${dataAddress} (${why})`))}: nothing can be received from them`,
          "open the data port (--data-port, 6755) between nodes in firewalls and network policies",
        )
      : unknown.length > 0
        ? note(
            "peers-data",
            `${unknown.length} of ${answering.length} nodes do not tell their data port: ${list(unknown.map(({ name }) => name))}`,
            "they are older, or their mover is being started",
          )
        : ok("peers-data", `all of ${answering.length} nodes that answer take data connections`);
  return answering.length === 0 ? [agents] : [agents, data];
}
